"""The protocol of acceptance rules, and their registry.

A rule looks at the trees of a round and the target's logits at every tree row, and says which path of each tree is kept
and which token follows it. Whatever the trees, what it emits is the target's own distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from specdec.round.batch import TreeRows
from specdec.round.sample.sampling import SamplingBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The outcome of a round for the S sequences that had a tree; all int64 on the logits' device.

    num_accepted_S: accepted drafts, 0 or more; num_accepted + 1 tokens are emitted.
    path_SD: tree rows of the kept path, root first; the last kept row fills the rest. Row path_SD[s, i] emitted token i.
    emitted_SD: emitted tokens, the accepted drafts then the target's own; -1 fills the rest.
    """

    num_accepted_S: Tensor
    path_SD: Tensor
    emitted_SD: Tensor


class AcceptanceRule(Protocol):
    """How drafts are kept or dropped."""

    name: str
    per_seed: bool  # whether the output for a seed is the same with and without speculation, not only its distribution

    def accept(
        self, tree: TreeRows, logits_TV: Tensor, sampling: SamplingBatch, q: Sequence[Tensor | None] | None = None
    ) -> Accepted:
        """Walk the trees.

        Args:
            tree: the trees.
            logits_TV: float32, the target's raw logits at each tree row.
            sampling: the sequences' sampling parameters and histories, in the order of the trees.
            q: per sequence, `Proposal.q` ([nodes of that tree, V], float32) or None where the children are the drafter's
                fixed choice. Rules that do not need it ignore it.
        """
        ...
