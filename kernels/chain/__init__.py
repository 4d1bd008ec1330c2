"""The ends of a round that runs without the host: its rows, from drafts that were looked up, and its outcome.

A sequence brings `width` rows: its root and a chain of drafts, which follow the match that `suffix_match` found. Rows without
a draft repeat the last row that has one, whose experts are read anyway, and write to a slot that nobody reads. So no shape
depends on what was found, and a round in which nothing was costs next to nothing more than a plain one.

Legend of shape suffixes: S sequences, W rows of a sequence, R all rows (S * W), L room of a history, C tokens of the corpus,
P pages of a sequence, T rounds whose outcome is kept, X integers of an outcome.
"""

import torch
from torch import Tensor

from specdec.kernels.chain.data import ChainRows, Chains, Match, Origin, Told
from specdec.kernels.chain.reference import chain_rows_reference, commit_chains_reference, tell_reference
from specdec.kernels.linear import uses_triton

__all__ = ["ChainRows", "Chains", "Match", "Origin", "Told", "chain_rows", "commit_chains", "tell"]


def chain_rows(chains: Chains, match: Match | None, *, width: int, page_size: int, spare_slot: int) -> ChainRows:
    """Lay a round out, and count it.

    Args:
        chains: the sequences; the page table reaches `width` positions beyond each history.
        match: of each history's end; None looks nothing up.
        width: rows of each sequence.
        page_size: tokens per page.
        spare_slot: where rows write whose keys nobody reads.
    """
    shape = {"width": width, "page_size": page_size, "spare_slot": spare_slot}
    if uses_triton(chains.history_SL.device):
        from specdec.kernels.chain.kernel import chain_rows_triton

        return chain_rows_triton(chains, match, **shape)
    return chain_rows_reference(chains, match, **shape)


def commit_chains(chains: Chains, rows: ChainRows, chosen_R: Tensor, tops_R: Tensor, settled_R: Tensor | None) -> None:
    """Accept by the shared-noise walk down each chain, and move histories and lengths on.

    Args:
        chains: the sequences.
        rows: from `chain_rows`.
        chosen_R: int64, the target's own token after each row.
        tops_R: float32, the largest logit of each row; where it is not finite the row gave no token.
        settled_R: bool, False where the row's token is not certain; None where all are.
    """
    assert tops_R.dtype == torch.float32, tops_R.dtype
    if uses_triton(chains.history_SL.device):
        from specdec.kernels.chain.kernel import commit_chains_triton

        commit_chains_triton(chains, rows, chosen_R, tops_R, settled_R)
    else:
        commit_chains_reference(chains, rows, chosen_R, tops_R, settled_R)


def tell(values: Tensor, ring_TX: Tensor, turns_1: Tensor) -> None:
    """Put what else a round tells into its row of a ring.

    Args:
        values: any shape, contiguous, of the ring's dtype; no more than a row has room for.
        ring_TX: row `turns_1 % T` takes them in its first entries; as `Chains.told_TX` it may be host memory.
        turns_1: see `Chains`.
    """
    assert values.dtype == ring_TX.dtype, (values.dtype, ring_TX.dtype)
    assert values.numel() <= ring_TX.shape[1], "the ring has room for a round"
    if uses_triton(values.device):
        from specdec.kernels.chain.kernel import tell_triton

        tell_triton(values, ring_TX, turns_1)
    else:
        tell_reference(values, ring_TX, turns_1)
