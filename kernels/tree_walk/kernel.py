"""Triton walk: one tree per program; see the package for the legend."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from specdec.kernels.launch import aligned, overlaps
from specdec.kernels.tree_rows import TreeRows


@triton.jit
def _walk_kernel(
    p_tokens,
    p_parents,
    p_depths,
    p_paths,
    p_nodes,
    p_firsts,
    p_chosen,
    p_tops,
    p_settled,
    p_num,
    p_rows,
    p_emitted,
    p_sound,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SETTLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (trees,)."""
    m = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
    w = tl.arange(0, BLOCK)
    first = tl.load(p_firsts + m)
    num_rows = tl.load(p_nodes + m) + w * 0
    m_w = w < num_rows
    row = first + w
    depth = tl.load(p_depths + row, m_w, other=0).to(tl.int32)
    path = tl.load(p_paths + row, m_w, other=0)
    # rows that repeat a node have its path, which ends at another bit than theirs
    own = ((path >> w.to(tl.int64)) == 1) | ((w == 63) & (path < 0))
    parent = tl.load(p_parents + row, m_w, other=0)
    before = tl.load(p_chosen + parent, m_w, other=-1)
    token = tl.load(p_tokens + row, m_w, other=-2)
    matches = m_w & own & ((token == before) | (depth == 0))
    one = tl.full((BLOCK,), 1, tl.int64)
    right = tl.sum(tl.where(matches, one << w.to(tl.int64), 0), 0)
    kept = matches & ((path & right) == path)
    num = tl.max(tl.where(kept, depth, 0), 0)
    last = tl.max(tl.where(kept & (depth == num), w, 0), 0)
    way = tl.sum(tl.where(w == last, path, 0), 0)
    on_way = m_w & (((way >> w.to(tl.int64)) & 1) == 1)
    chosen = tl.load(p_chosen + row, on_way, other=-1)
    top = tl.load(p_tops + row, on_way, other=0.0)
    sound = (top == top) & (tl.abs(top) < float("inf"))
    if HAS_SETTLED:
        sound = sound & (tl.load(p_settled + row, on_way, other=1) != 0)
    tl.store(p_num + m, num.to(tl.int64))
    tl.store(p_sound + m, tl.min(sound.to(tl.int32), 0).to(tl.int1))
    m_none = (w < N) & (num_rows == 0)
    tl.store(p_rows + m * N + w, first + last + w * 0, (w < N) & (w > num) & (num_rows > 0))
    tl.store(p_emitted + m * N + w, one * -1, (w < N) & (w > num) & (num_rows > 0))
    # members without a tree: rows that exist, no tokens
    tl.store(p_rows + m * N + w, row * 0, m_none)
    tl.store(p_emitted + m * N + w, one * -1, m_none)
    tl.store(p_rows + m * N + depth, row, on_way)
    tl.store(p_emitted + m * N + depth, chosen, on_way)


def walk_trees_triton(
    rows: TreeRows, nodes_M: Tensor, firsts_M: Tensor, chosen_T: Tensor, tops_T: Tensor, settled_T: Tensor | None
) -> tuple[Tensor, ...]:
    """As `specdec.kernels.tree_walk.walk_trees`; everything contiguous."""
    num_nodes, num_trees, pdl = rows.ancestors_TD.shape[1], len(nodes_M), overlaps(chosen_T.device)
    kept, emitted = aligned(2, num_trees, num_nodes, device=chosen_T.device)
    num = kept.new_empty(num_trees)
    sound = torch.empty(num_trees, dtype=torch.bool, device=chosen_T.device)
    block = triton.next_power_of_2(num_nodes)
    _walk_kernel[(num_trees,)](
        rows.tokens_T,
        rows.parents_T,
        rows.depths_T,
        rows.paths_T,
        nodes_M,
        firsts_M,
        chosen_T,
        tops_T,
        settled_T,
        num,
        kept,
        emitted,
        sound,
        num_nodes,
        block,
        settled_T is not None,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=1,
    )
    return num, kept, emitted, sound
