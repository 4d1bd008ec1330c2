"""The lookup drafter: n-gram, prediction and suffix drafts as one kernel over everything that there is to copy from.

Legend of shape suffixes: M members, S slots, B room of a reference, C tokens of the corpus.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.cache.kinds import Caches
from specdec.draft.protocol import Drafts, DraftView, ObserveView, Starter
from specdec.drafters.lookup.kinds import labels, lookup_kinds, sampled_shift
from specdec.kernels.suffix_match import LONGEST_MATCH, SEPARATOR, Library, Origin, suffix_candidates
from specdec.kernels.tree_select import Candidates
from specdec.models.base import CacheSpec
from specdec.round.transfer import write

NAMES = {Origin.TEXT: "ngram", Origin.REFERENCE: "prediction", Origin.CORPUS: "suffix"}
CORPUS_TOKENS = 1 << 16  # of earlier answers


class LookupDrafter:
    """See `specdec.draft.protocol.Drafter`. Its candidates do not depend on how many may be verified, so that it is always
    known what there would be.

    Args:
        names: which of `NAMES` are wanted.
        num_slots: sequences at once.
        max_model_len: tokens of a sequence, and of a text that a request expects.
        width: tokens that the best place is followed for.
        device: where rounds run.
    """

    reads: tuple[str, ...] = ()
    shared_names = (NAMES[Origin.CORPUS],)
    cache_specs: tuple[CacheSpec, ...] = ()

    def __init__(self, names: Sequence[str], num_slots: int, max_model_len: int, width: int, device: torch.device) -> None:
        self.names = tuple(names)
        self.kinds = lookup_kinds(len(names))
        self._width = width
        self._num_slots = num_slots
        self._max_reference = max_model_len
        self._device = device
        sources = np.array([self.names.index(name) if name in self.names else 0 for name in NAMES.values()])
        self._labels = torch.tensor(labels(sources), device=device)
        self._shifts_S = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        self._sampled = np.zeros(num_slots + 1, np.bool_)  # as the shifts say
        corpus = CORPUS_TOKENS if NAMES[Origin.CORPUS] in names else 0
        self._corpus_C = torch.full((corpus,), SEPARATOR, dtype=torch.int32, device=device)
        self._to_learn: deque[int] = deque(maxlen=max(corpus, 1))
        self._references_SB = self._make_references(0)
        self._reference_lengths_S = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        self._has_reference = np.zeros(num_slots + 1, np.bool_)
        self._secret = np.zeros(num_slots + 1, np.bool_)  # whose answers nobody else may see

    @property
    def shape(self) -> int:
        """Room of the references: none until the first request brings one."""
        return self._references_SB.shape[1]

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None:
        """It has no layers."""

    def enter(self, slot: int, starter: Starter) -> None:
        """See `Drafter.enter`."""
        self._secret[slot] = bool(starter.group)
        if self._sampled[slot] == starter.sampling.greedy:
            self._sampled[slot] = not starter.sampling.greedy
            self._shifts_S[slot] = sampled_shift() * int(self._sampled[slot])
        expects = bool(starter.prediction_ids) and NAMES[Origin.REFERENCE] in self.names
        if expects:
            if not self.shape:
                self._references_SB = self._make_references(self._max_reference)
            # behind the prompt's end, so that a match leads from there into it
            prompt = starter.tokens[: starter.num_prompt_tokens]
            text = [*prompt[-LONGEST_MATCH:], *starter.prediction_ids][: self._max_reference]
            write(self._references_SB[slot, : len(text)], np.array(text, np.int32))
            self._reference_lengths_S[slot] = len(text)
        elif self._has_reference[slot]:
            self._reference_lengths_S[slot] = 0
        self._has_reference[slot] = expects

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """Answers are copied from later, those of a group aside; the oldest ones make room."""
        if len(self._corpus_C) and output and not self._secret[slot]:
            self._to_learn.extend([*output, SEPARATOR])

    def forget(self) -> None:
        """No earlier answer is copied from any more."""
        self._to_learn.clear()
        self._corpus_C.fill_(SEPARATOR)

    def catch_up(self) -> None:
        """Answers join the corpus when drafters are asked next, so that they cost nothing while these rest: at its end, since
        later places come first, and so that none is parted."""
        if count := len(self._to_learn):
            self._corpus_C.copy_(self._corpus_C.roll(-count))
            write(self._corpus_C[-count:], np.array(self._to_learn, np.int32))
            self._to_learn.clear()

    def draft(self, view: DraftView) -> Drafts:
        """See `Drafter.draft`."""
        reach = min(view.num_pages * view.page_size, view.texts.tokens_SL.shape[1])
        library = Library(
            view.texts.tokens_SL[:, :reach],
            view.texts.lengths_S,
            self._references_SB,
            self._reference_lengths_S,
            self._corpus_C,
            own=NAMES[Origin.TEXT] in self.names,
        )
        found = suffix_candidates(library, view.slots_M, self._labels, self._shifts_S, width=self._width)
        return Drafts(Candidates(*found))

    def observe(self, view: ObserveView) -> None:
        """Nothing: texts are read where they lie."""

    def _make_references(self, room: int) -> Tensor:
        return torch.zeros(self._num_slots + 1, room, dtype=torch.int32, device=self._device)
