"""A lookup drafter over texts that grow, for its tests."""

from collections.abc import Sequence

import torch

from specdec.draft.protocol import DraftView, Starter
from specdec.draft.tree import DraftTree
from specdec.drafters.lookup import LookupDrafter
from specdec.request import SamplingParams
from specdec.round.drafts import Drafting
from tests.drafters.conftest import CPU, Gram, chosen, paths_of, texts_of, trees_of, view_of

ALL = ("ngram", "suffix", "prediction")
WIDTH = 31
ROOM = 400  # of a text


class Desk:
    """A drafter, and the texts of its slots as they grow. Behind a text lies what stood there before."""

    def __init__(self, *names: str, num_slots: int = 2, max_model_len: int = ROOM) -> None:
        self.drafter = LookupDrafter(names, num_slots, max_model_len, WIDTH, CPU)
        self.drafting = Drafting([self.drafter], 63, CPU)
        self.lengths = [1] * (num_slots + 1)
        self.tokens_SL = torch.zeros(num_slots + 1, ROOM, dtype=torch.int32)

    def enter(
        self,
        slot: int,
        tokens: Sequence[int],
        prediction: Sequence[int] = (),
        prompt: int | None = None,
        temperature: float = 0.0,
    ) -> None:
        self.lengths[slot] = 0
        self.grow(slot, tokens)
        sampling = SamplingParams(temperature=temperature)
        self.drafter.enter(slot, Starter(tokens, len(tokens) if prompt is None else prompt, sampling, prediction))

    def grow(self, slot: int, tokens: Sequence[int]) -> None:
        end = self.lengths[slot] + len(tokens)
        self.tokens_SL[slot, self.lengths[slot] : end] = torch.tensor(tokens, dtype=torch.int32)
        self.lengths[slot] = end

    def answers(self, *outputs: Sequence[int]) -> None:
        """Sequences that come and go in slot 1, finished."""
        for output in outputs:
            self.enter(1, [999_999])
            self.drafter.leave(1, output)

    def text(self, slot: int) -> list[int]:
        tokens: list[int] = self.tokens_SL[slot, : self.lengths[slot]].tolist()
        return tokens

    def view(self, *slots: int) -> DraftView:
        self.drafter.catch_up()  # as before every round that drafts
        texts = texts_of([[0]] * len(self.lengths), room=ROOM)
        texts.tokens_SL.copy_(self.tokens_SL)
        texts.lengths_S.copy_(torch.tensor(self.lengths))
        return view_of(texts, slots)

    def paths(self, slot: int = 0) -> list[Gram]:
        return paths_of(self.drafter.draft(self.view(slot)).candidates)[0]

    def tree(self, slot: int = 0, nodes: int = 64) -> DraftTree:
        return trees_of(chosen(self.drafting, self.view(slot), nodes)[0], [self.text(slot)[-1]])[0]

    def credits(self, slot: int = 0) -> dict[Gram, str]:
        """Whom each path counts for."""
        candidates = self.drafter.draft(self.view(slot)).candidates
        kinds = candidates.kinds_MC[0][candidates.tokens_MC[0] >= 0].tolist()
        names = [self.drafter.names[source] for source in self.drafter.kinds.sources_X[kinds].tolist()]
        return dict(zip(paths_of(candidates)[0], names, strict=True))
