"""Moves of accepted tree rows: what was drafted off the spine goes where its position lies in the paged cache.

Legend of shape suffixes: M trees, T tree rows, D depths.
"""

from torch import Tensor

from specdec.kernels.entry_move.reference import accepted_moves, move_accepted_reference
from specdec.kernels.linear import uses_triton
from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk import Accepted

__all__ = ["accepted_moves", "move_accepted"]


def move_accepted(store: Tensor, rows: TreeRows, accepted: Accepted, nodes_M: Tensor) -> None:
    """Copy the entries of accepted rows to their positions, in every layer. Rows that lie there already cost nothing, and trees
    that are not sound move nothing.

    Args:
        store: [layers, pages, heads, page size, head_dim], contiguous.
        rows: the trees.
        accepted: what is kept of them.
        nodes_M: int64, see `specdec.kernels.tree_rows.Layout`; members with 0 move nothing.
    """
    if uses_triton(store.device):
        from specdec.kernels.entry_move.kernel import move_accepted_triton

        move_accepted_triton(store, rows, accepted, nodes_M)
    else:
        move_accepted_reference(store, rows, accepted, nodes_M)
