"""The end of a round: emitted tokens join their texts, and the outcome goes where the host reads it.

Legend of shape suffixes: M members of a round, N nodes of a tree (the root counted), D depths (= N), S texts in memory, L room
of a text, V vocabulary, H rounds whose outcome is kept, X integers of an outcome.
"""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from specdec.kernels.commit.reference import commit_reference, tell_reference
from specdec.kernels.linear import uses_triton
from specdec.kernels.tree_rows import Layout, Texts
from specdec.kernels.tree_select import OFFERED, Candidates, Trees
from specdec.kernels.tree_walk import Accepted

__all__ = ["KIND_BITS", "SURE", "Told", "Verified", "commit", "tell", "told_width"]

KIND_BITS = 32  # of what is told of a node, beside its parent
SURE = 1 << 20  # as what certainty is told


class Told(IntEnum):
    """Columns of what a round tells of a member; behind them D emitted tokens. Where the round drafted, D nodes of the kept
    path follow, then for each of the N nodes `kind | parent << KIND_BITS`, -1 where there is none, then how likely the best
    OFFERED candidates survive, in parts of SURE."""

    ACCEPTED = 0
    SOUND = 1  # a member without a tree is sound
    DRAFTED = 2
    OFFER = 3  # kind of the likeliest candidate right below the root, chosen or not; -1 for none
    OFFERED = 4  # whether that was the token that followed the root


@dataclass(frozen=True, slots=True)
class Verified:
    """The drafts of a round: what they were chosen from, and the trees."""

    candidates: Candidates
    trees: Trees


def told_width(num_nodes: int, drafted: bool) -> int:
    """Integers that a round tells of one member."""
    return len(Told) + num_nodes + (2 * num_nodes + OFFERED) * drafted


def commit(
    texts: Texts,
    layout: Layout,
    accepted: Accepted,
    verified: Verified | None,
    told_HX: Tensor,
    turns_1: Tensor,
    counts_SV: Tensor | None = None,
) -> None:
    """Append what was emitted, move the lengths on, and tell. A text whose member is not sound stays as it is.

    Args:
        texts: the texts; room for D more tokens in each.
        layout: who took part, with a tree or without.
        accepted: what was decided.
        verified: None where no drafter ran.
        told_HX: int64, a ring: row `turns_1 % H` takes `told_width` entries of each member. It may be host memory that the
            device reaches, so that no copy stands between two rounds.
        turns_1: int64, rounds so far.
        counts_SV: int32, how often each token stands in each text's output, kept up to date where given.
    """
    told = len(layout.texts_M) * told_width(accepted.emitted_MD.shape[1], verified is not None)
    assert told <= told_HX.shape[1], "the ring has room for a round"
    if uses_triton(texts.lengths_S.device):
        from specdec.kernels.commit.kernel import commit_triton

        commit_triton(texts, layout, accepted, verified, told_HX, turns_1, counts_SV)
    else:
        commit_reference(texts, layout, accepted, verified, told_HX, turns_1, counts_SV)


def tell(values: Tensor, ring_HX: Tensor, turns_1: Tensor) -> None:
    """Put what else a round tells into its row of a ring.

    Args:
        values: any shape, contiguous, of the ring's dtype; no more than a row has room for.
        ring_HX: row `turns_1 % H` takes them in its first entries; as `told_HX` it may be host memory.
        turns_1: see `commit`.
    """
    assert values.dtype == ring_HX.dtype, (values.dtype, ring_HX.dtype)
    assert values.numel() <= ring_HX.shape[1], "the ring has room for a round"
    if uses_triton(values.device):
        from specdec.kernels.commit.kernel import tell_triton

        tell_triton(values, ring_HX, turns_1)
    else:
        tell_reference(values, ring_HX, turns_1)
