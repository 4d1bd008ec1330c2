"""How a drafter in plain Python takes part in rounds on tensors.

Before each round that may verify something of a sequence, the host asks the function with all tokens so far and writes what it
proposes into the sequence's slot, where the round reads it. Until the host knows those tokens the sequence sits out, see
`specdec.engine.sequence.HostWork`: where rounds run ahead of the host, such a sequence takes part in fewer of them.

Legend of shape suffixes: M members, S slots, C candidates, F fields of a candidate.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from specdec.arrays import IntArray
from specdec.cache.kinds import Caches
from specdec.draft.protocol import CandidateKinds, Candidates, Drafts, DraftView, ObserveView, Starter
from specdec.draft.tree import DraftTree
from specdec.models.base import CacheSpec
from specdec.request import Request
from specdec.round.transfer import write

Propose = Callable[[Sequence[int]], Sequence[int] | DraftTree]

_DEPTHS = 8  # that are told apart; deeper drafts count as the last
_PRIOR = 0.5  # nothing is known of such a drafter before its first drafts were verified
_NONE = -1  # as a token


class HostDrafter:
    """See `specdec.draft.protocol.Drafter`.

    Args:
        name: what its drafts count as.
        propose: from all tokens of a sequence, prompt and answer, to what may follow: tokens one after another, none, or a tree
            whose root stands for the last token. What it raises fails that request.
        num_slots: sequences at once.
        max_drafts: nodes of a tree; those behind are lost.
        vocab_size: tokens lie below it.
        device: where rounds run.
    """

    reads: tuple[str, ...] = ()
    cache_specs: tuple[CacheSpec, ...] = ()
    kinds = CandidateKinds(np.full(_DEPTHS, _PRIOR), np.zeros(_DEPTHS, np.int64))

    def __init__(
        self, name: str, propose: Propose, *, num_slots: int, max_drafts: int, vocab_size: int, device: torch.device
    ) -> None:
        self.names: tuple[str, ...] = (name,)
        self._propose = propose
        self._vocab_size = vocab_size
        self._drafts_SFC = torch.zeros(num_slots + 1, 3, max_drafts, dtype=torch.int64, device=device)
        self._drafts_SFC[:, 0] = _NONE

    @property
    def shape(self) -> int:
        """Always the same."""
        return 0

    def bind(self, caches: Caches, first_layer: int, row_multiple: int) -> None:
        """It has no layers."""

    def concerns(self, request: Request) -> bool:
        """See `specdec.engine.sequence.HostWork`."""
        wish = request.speculation
        return wish.enabled and wish.drafter in (None, *self.names) and wish.max_nodes != 1

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        """See `specdec.engine.sequence.HostWork`.

        Raises:
            ValueError: the proposal is no tree, or has tokens that the target does not know.
        """
        proposed = self._propose(tokens)
        tree = proposed if isinstance(proposed, DraftTree) else DraftTree.chain(tokens[-1], proposed)
        write(self._drafts_SFC[slot], self._fields(tree))

    def enter(self, slot: int, starter: Starter) -> None:
        """The last sequence's drafts are no longer there."""
        self._drafts_SFC[slot, 0] = _NONE

    def leave(self, slot: int, output: Sequence[int]) -> None:
        """Nothing to learn."""

    def draft(self, view: DraftView) -> Drafts:
        """See `Drafter.draft`."""
        return Drafts(Candidates(*self._drafts_SFC[view.slots_M].unbind(1)), repeats=True)

    def observe(self, view: ObserveView) -> None:
        """Nothing to learn."""

    def _fields(self, tree: DraftTree) -> IntArray:
        """int64 [F, C]: tokens, parents among the candidates, kinds."""
        tokens, parents = tree.tokens[1:], tree.parents[1:]
        wrong = [token for token in tokens.tolist() if not 0 <= token < self._vocab_size]
        if wrong:
            raise ValueError(f"the drafter {self.names[0]} drafts token {wrong[0]}, but ids lie below {self._vocab_size}")
        if len(parents) != len(tokens) or ((parents < 0) | (parents > np.arange(len(tokens)))).any():
            raise ValueError(f"the drafter {self.names[0]} gives a node a parent that is not an earlier node")
        depths = tree.depths()[1:]
        fields = np.zeros(self._drafts_SFC.shape[1:], np.int64)
        fields[0] = _NONE
        count = min(len(tokens), fields.shape[1])
        fields[:, :count] = np.stack((tokens, parents - 1, np.minimum(depths, _DEPTHS) - 1))[:, :count]
        return fields
