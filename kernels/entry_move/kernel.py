"""Triton moves: one tree in one layer per program; see the package for the legend."""

import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk import Accepted


@triton.jit(do_not_specialize=["P", "N"])
def _move_kernel(
    p_store,
    p_entries,
    p_bases,
    p_page_table,
    p_num,
    p_rows,
    p_sound,
    p_nodes,
    layer_step,
    P,
    N,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (trees, layers)."""
    m = tl.program_id(0)
    if (tl.load(p_nodes + m) == 0) | (tl.load(p_sound + m) == 0):
        return
    num = tl.load(p_num + m)
    base = tl.load(p_bases + m)
    p_layer = p_store + tl.program_id(1).to(tl.int64) * layer_step
    i = tl.arange(0, BLOCK)
    m_i = i < HEADS * DIM
    at = i // DIM * (PAGE * DIM) + i % DIM
    for d in range(1, num + 1):
        source = tl.load(p_entries + tl.load(p_rows + m * N + d))
        position = base + d
        target = tl.load(p_page_table + m * P + position // PAGE) * PAGE + position % PAGE
        if source != target:
            values = tl.load(p_layer + (source // PAGE * (HEADS * PAGE) + source % PAGE) * DIM + at, m_i)
            tl.store(p_layer + (target // PAGE * (HEADS * PAGE) + target % PAGE) * DIM + at, values, m_i)


def move_accepted_triton(store: Tensor, rows: TreeRows, accepted: Accepted, nodes_M: Tensor) -> None:
    """As `specdec.kernels.entry_move.move_accepted`; tables contiguous."""
    layers, _, heads, page, dim = store.shape
    num_trees, num_nodes = accepted.rows_MD.shape
    _move_kernel[(num_trees, layers)](
        store,
        rows.entries_T,
        rows.bases_M,
        rows.page_table_MP,
        accepted.num_M,
        accepted.rows_MD,
        accepted.sound_M,
        nodes_M,
        store.stride(0),
        rows.page_table_MP.shape[1],
        num_nodes,
        heads,
        page,
        dim,
        triton.next_power_of_2(heads * dim),
        num_warps=4,
    )
