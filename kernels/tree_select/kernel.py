"""Triton choice of nodes: one tree per program, every candidate compared with every other; see the package for the legend."""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.launch import aligned
from specdec.kernels.tree_select.reference import FAINTEST, OFFERED, PATH_FACTOR, SUREST, doublings

if TYPE_CHECKING:
    from specdec.kernels.tree_select import Candidates


@triton.jit(do_not_specialize=["tokens_step", "parents_step", "kinds_step", "C", "max_depth"])
def _select_kernel(
    p_tokens,
    p_parents,
    p_kinds,
    p_chances,
    p_odds,
    p_nodes,
    p_least,
    p_out_tokens,
    p_out_parents,
    p_out_picks,
    p_counts,
    p_offers,
    p_survivals,
    tokens_step,
    parents_step,
    kinds_step,
    C,
    max_depth,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    SHARED: tl.constexpr,
    FACTOR: tl.constexpr,
    OFFERED: tl.constexpr,
    SUREST: tl.constexpr,
    FAINTEST: tl.constexpr,
):
    """Grid (trees,). The steps are the strides between trees, 0 where all share a row."""
    m = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    m_c = c < C
    token = tl.load(p_tokens + m * tokens_step + c, m_c, other=-1)
    parent = tl.load(p_parents + m * parents_step + c, m_c, other=-1).to(tl.int32)
    kind = tl.load(p_kinds + m * kinds_step + c, m_c, other=0)
    plain = tl.load(p_chances + kind, m_c, other=0.0)
    odds = plain * tl.load(p_odds + m)
    chance = tl.where(token >= 0, tl.minimum(tl.div_rn(odds, odds + (1.0 - plain)), SUREST), 0.0)
    survival = chance
    depth = tl.full((BLOCK,), 1, tl.int32)
    above = parent
    path = token + 1
    factor = tl.full((BLOCK,), FACTOR, tl.int64)
    for _ in tl.static_range(STEPS):
        more = above >= 0
        at = tl.maximum(above, 0)
        survival *= tl.where(more, tl.gather(survival, at, 0), 1.0)
        depth += tl.where(more, tl.gather(depth, at, 0), 0)
        if SHARED:
            path += tl.where(more, factor * tl.gather(path, at, 0), 0)
            factor *= tl.where(more, tl.gather(factor, at, 0), 1)
        above = tl.where(more, tl.gather(above, at, 0), -1)
    allowed = (survival >= tl.load(p_least)) & (survival >= FAINTEST) & (depth <= max_depth)
    if SHARED:
        same = (path[:, None] == path[None, :]) & (depth[:, None] == depth[None, :])
        same = same & allowed[:, None] & allowed[None, :]
        first = tl.min(tl.where(same, c[None, :], BLOCK), 1)
        survival = tl.max(tl.where(same, survival[None, :], 0.0), 1)
        allowed = allowed & (first == c)
        up = tl.gather(first, tl.maximum(parent, 0), 0)
        parent = tl.where(parent >= 0, tl.minimum(up, BLOCK - 1), -1)
    ahead = (survival[None, :] > survival[:, None]) | ((survival[None, :] == survival[:, None]) & (c[None, :] < c[:, None]))
    rank = tl.sum((ahead & allowed[None, :]).to(tl.int32), 1)
    chosen = allowed & (rank < tl.load(p_nodes + m) - 1)
    o = tl.arange(0, BLOCK)
    offered = tl.sum(allowed.to(tl.int32), 0)
    for begin in tl.static_range(0, OFFERED, BLOCK):
        tl.store(p_survivals + m * OFFERED + begin + o, o * 0.0, (begin + o >= offered) & (begin + o < OFFERED))
    tl.store(p_survivals + m * OFFERED + rank, survival, allowed & (rank < OFFERED))
    node = tl.cumsum(chosen.to(tl.int32), 0)
    above_node = tl.where(parent >= 0, tl.gather(node, tl.maximum(parent, 0), 0), 0)
    n = tl.arange(0, BLOCK_N)
    count = tl.sum(chosen.to(tl.int32), 0)
    unused = ((n == 0) | (n > count)) & (n < N)
    tl.store(p_out_tokens + m * N + n, tl.full((BLOCK_N,), -1, tl.int64), unused)
    tl.store(p_out_parents + m * N + n, tl.zeros((BLOCK_N,), tl.int64), unused)
    tl.store(p_out_picks + m * N + n, tl.full((BLOCK_N,), -1, tl.int64), unused)
    tl.store(p_out_tokens + m * N + node, token, chosen)
    tl.store(p_out_parents + m * N + node, above_node.to(tl.int64), chosen)
    tl.store(p_out_picks + m * N + node, c.to(tl.int64), chosen)
    tl.store(p_counts + m, count.to(tl.int64))
    below = tl.where((tl.load(p_parents + m * parents_step + c, m_c, other=0) < 0) & (token >= 0), chance, -1.0)
    best = tl.max(below, 0)
    place = tl.min(tl.where(below == best, c, BLOCK), 0)
    tl.store(p_offers + m, tl.where(best >= 0.0, place, -1).to(tl.int64))


def select_trees_triton(
    candidates: "Candidates",
    chances_K: Tensor,
    odds_M: Tensor,
    nodes_M: Tensor,
    least_1: Tensor,
    num_nodes: int,
    max_depth: int,
    shared: bool,
) -> tuple[Tensor, ...]:
    """As `specdec.kernels.tree_select.select_trees`; candidates contiguous in their last dimension."""
    tokens_MC, parents_MC, kinds_MC = candidates.tokens_MC, candidates.parents_MC, candidates.kinds_MC
    num_trees, size = tokens_MC.shape
    of_nodes = aligned(3, num_trees, num_nodes, device=tokens_MC.device)
    of_trees = aligned(2, num_trees, device=tokens_MC.device)
    survivals = torch.empty((num_trees, OFFERED), dtype=torch.float32, device=tokens_MC.device)
    block = max(triton.next_power_of_2(size), 16)
    _select_kernel[(num_trees,)](
        tokens_MC,
        parents_MC,
        kinds_MC,
        chances_K,
        odds_M,
        nodes_M,
        least_1,
        *of_nodes,
        *of_trees,
        survivals,
        tokens_MC.stride(0),
        parents_MC.stride(0),
        kinds_MC.stride(0),
        size,
        max_depth,
        num_nodes,
        triton.next_power_of_2(num_nodes),
        block,
        doublings(size, max_depth),
        shared,
        PATH_FACTOR,
        OFFERED,
        SUREST,
        FAINTEST,
        num_warps={16: 1, 32: 1, 64: 4}.get(block, 8),
        enable_fp_fusion=False,
    )
    return *of_nodes, *of_trees, survivals
