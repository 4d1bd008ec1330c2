"""The protocol of acceptance rules.

A rule looks at the trees of a round and the target's logits at every tree row, and says which path of each tree is kept and
which token follows it. Whatever the trees, what it emits is the target's own distribution. A rule is a function of tensors:
no shape and no branch depends on a value, so that a round with it can be recorded.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from specdec.kernels.commit import Verified
from specdec.kernels.tree_rows import Layout, TreeRows
from specdec.kernels.tree_walk import Accepted
from specdec.round.sample.draw import Nucleus, Sampling

__all__ = ["AcceptanceRule", "Accepted", "Verification"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a rule decides from.

    rows, layout: the tree rows, and who brings them. logits_TV: float32, contiguous, edited. sampling, nucleus: how tokens are
    drawn. truncated: rows that a filter truncates, at most; 0: any number. verified: what the nodes were chosen from; None
    where no drafter ran. laws_MLV: float32, where a drafter *sampled*: [m, c + 1] is the distribution that the children of
    candidate c were drawn from without replacement, [m, 0] the root's; zero where children are a fixed choice, and None where
    all are.
    """

    rows: TreeRows
    layout: Layout
    logits_TV: Tensor
    sampling: Sampling
    nucleus: Nucleus
    truncated: int = 0
    verified: Verified | None = None
    laws_MLV: Tensor | None = None


class AcceptanceRule(Protocol):
    """How drafts are kept or dropped."""

    name: str
    per_seed: bool  # whether the output for a seed is the same with and without speculation, not only its distribution

    def accept(self, verification: Verification) -> Accepted:
        """Decide every tree of a round."""
        ...
