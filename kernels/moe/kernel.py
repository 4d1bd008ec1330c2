"""Triton mixture of experts, weight-major: a touched expert's weights stream once, for all of its rows.

Few rows (up to DIRECT_ROWS): every program multiplies all rows by its expert's tile and stores those that chose it; the
programs of an expert that an earlier row chose already leave at once. More rows: a counting sort on the device lists the
(row, rank) pairs by expert, and tiles of that list are multiplied. Both give a pair the same bits, since every product
is a GEMM row with fixed accumulator chains; the k results of a row are added in order of rank by one writer.

Legend of shape suffixes: R rows, X experts, k experts per row, E hidden size, I expert's inner size, P pairs (row * k + rank).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.linear.kernel import (
    Tile,
    chained_product,
    linear_splits_triton,
    norm_warps,
    normalised,
    num_chains,
    overlaps,
)

DIRECT_ROWS = 16
ROUTER_SPLITS = 8


@dataclass(frozen=True, slots=True)
class Groups:
    """Pairs sorted by expert: order_P int32 pairs, starts_X int32 [X + 1] where each expert's run begins."""

    order_P: Tensor
    starts_X: Tensor


@triton.jit
def _route_kernel(
    p_logits,
    p_weights,
    p_experts,
    R,
    SPLITS: tl.constexpr,
    X: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALISE: tl.constexpr,
    BLOCK_X: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row per program: add the partial logits in order, rank every expert against every other, keep the first k."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    here = tl.arange(0, BLOCK_X)
    mine = tl.zeros((BLOCK_X,), tl.float32)
    for split in tl.static_range(SPLITS):
        mine += tl.load(p_logits + (split * R + row) * X + here, here < X, other=0.0)
    # a NaN must not turn into an expert id out of range: it loses every comparison
    mine = tl.where((here < X) & (mine == mine), mine, float("-inf"))
    top = tl.max(mine, 0)
    raw = tl.exp(mine - tl.where(top == float("-inf"), 0.0, top))
    mine_column = tl.reshape(mine, (BLOCK_X, 1))
    others = tl.reshape(mine, (1, BLOCK_X))
    ahead = (others > mine_column) | ((others == mine_column) & (here[None, :] < here[:, None]))
    rank = tl.sum(ahead.to(tl.int32), 1)
    chosen = rank < TOP_K
    if RENORMALISE:
        total = tl.sum(tl.where(chosen, raw, 0.0), 0)
    else:
        total = tl.sum(raw, 0)
    tl.store(p_weights + row * TOP_K + rank, raw / total, chosen)
    tl.store(p_experts + row * TOP_K + rank, here, chosen)


@triton.jit
def _group_kernel(p_experts, p_order, p_starts, P, X: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One expert per program: where its run starts, and its pairs in ascending order."""
    expert = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = 0
    for start in range(0, P, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        place += tl.sum((tl.load(p_experts + pair, pair < P, other=X) < expert).to(tl.int32), 0)
    tl.store(p_starts + expert, place)
    for start in range(0, P, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        match = (tl.load(p_experts + pair, pair < P, other=X) == expert).to(tl.int32)
        tl.store(p_order + place + tl.cumsum(match, 0) - 1, pair, match == 1)
        place += tl.sum(match, 0)
    tl.store(p_starts + expert + 1, place, expert == X - 1)


@triton.jit
def _expert_kernel(
    p_x,
    p_w,
    p_experts,
    p_order,
    p_starts,
    p_out,
    R,
    N: tl.constexpr,
    K: tl.constexpr,
    X: tl.constexpr,
    TOP_K: tl.constexpr,
    CHAINS: tl.constexpr,
    IN_TURN: tl.constexpr,
    GATED: tl.constexpr,
    GROUPED: tl.constexpr,
    BY_EXPERT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
    BLOCK_X: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[pair] = silu(gate) * up of x[row] (GATED: w [X, 2N, K]) or w x[pair] (w [X, N, K]).

    Grid (column tiles, slots). A slot is a pair, whose expert is done here if no earlier row chose it; or an expert
    (BY_EXPERT); or a tile of the sorted pairs (GROUPED).
    """
    tile_n = tl.program_id(0)
    slot = tl.program_id(1)
    if PDL:
        if GATED:
            # the routing was written just before; who starts after this kernel may read it without a wait
            gdc_wait()
        gdc_launch_dependents()
    m = tl.arange(0, BLOCK_M)
    if GROUPED:
        x_id = tl.arange(0, BLOCK_X)
        starts = tl.load(p_starts + x_id, x_id < X, other=0)
        counts = tl.load(p_starts + x_id + 1, x_id < X, other=0) - starts
        tiles = (counts + BLOCK_M - 1) // BLOCK_M
        until = tl.cumsum(tl.where(x_id < X, tiles, 0), 0)
        expert = tl.sum(((until <= slot) & (x_id < X)).to(tl.int32), 0)
        active = expert < X
        is_expert = x_id == expert
        first = (slot - tl.sum(tl.where(is_expert, until - tiles, 0), 0)) * BLOCK_M
        has = m < tl.sum(tl.where(is_expert, counts, 0), 0) - first  # of no pair where there is no such expert
        pair = tl.load(p_order + tl.sum(tl.where(is_expert, starts, 0), 0) + first + m, has, other=0)
    else:
        rank = tl.arange(0, BLOCK_TOP)
        m_chosen = (m[:, None] < R) & (rank[None, :] < TOP_K)
        chosen = tl.load(p_experts + m[:, None] * TOP_K + rank[None, :], m_chosen, other=X)
        expert = slot if BY_EXPERT else tl.load(p_experts + slot)
        match = chosen == expert
        has = tl.max(match.to(tl.int32), 1) > 0
        pair = m * TOP_K + tl.sum(tl.where(match, rank[None, :], 0), 1)
        first_row = tl.min(tl.where(has, m, BLOCK_M), 0)
        active = first_row < BLOCK_M if BY_EXPERT else first_row == slot // TOP_K
    p_w_expert = p_w + expert.to(tl.int64) * ((2 if GATED else 1) * N * K)
    if not active:
        if PDL and not GATED:
            gdc_wait()
        return

    WIDE: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    j = tl.arange(0, WIDE)
    column = tile_n * BLOCK_N + j % BLOCK_N
    # the tile's gate rows, then its up rows
    p_ws = p_w_expert + (column + j // BLOCK_N * N) * K
    source = pair // TOP_K if GATED else pair
    p_xs = p_x + source.to(tl.int64) * K
    acc = chained_product(p_xs, p_ws, has, column < N, K, CHAINS, IN_TURN, PDL and not GATED, BLOCK_M, WIDE, BLOCK_K)
    DTYPE: tl.constexpr = p_out.dtype.element_ty
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))
        gate = gate.to(DTYPE).to(tl.float32)
        acc = (gate / (1.0 + tl.exp(-gate))).to(DTYPE).to(tl.float32) * up.to(DTYPE).to(tl.float32)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = n < N
    tl.store(p_out + pair.to(tl.int64)[:, None] * N + n[None, :], acc.to(DTYPE), has[:, None] & m_n[None, :])


@triton.jit
def _combine_kernel(
    p_parts,
    p_weights,
    p_residual,
    p_norm,
    p_out,
    p_normed,
    eps,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row per program: out = residual + sum over rank, in order, of weight * part; then the next layer's norm."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
    e = tl.arange(0, BLOCK)
    m_e = e < E
    if HAS_NORM:
        b_norm = tl.load(p_norm + e, m_e, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    acc = tl.zeros((BLOCK,), tl.float32)
    for rank in tl.static_range(TOP_K):
        part = tl.load(p_parts + (row * TOP_K + rank) * E + e, m_e, other=0.0).to(tl.float32)
        acc += tl.load(p_weights + row * TOP_K + rank) * part
    DTYPE: tl.constexpr = p_out.dtype.element_ty
    acc = acc.to(DTYPE).to(tl.float32)
    if HAS_RESIDUAL:
        acc = (acc + tl.load(p_residual + row * E + e, m_e, other=0.0).to(tl.float32)).to(DTYPE).to(tl.float32)
    tl.store(p_out + row * E + e, acc.to(DTYPE), m_e)
    if HAS_NORM:
        tl.store(p_normed + row * E + e, normalised(acc, b_norm, eps, E, DTYPE), m_e)


def route_triton(x_RE: Tensor, router_XE: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The k experts of each row, best first, ties to the lower id: float32 [R, k] weights, int32 [R, k] expert ids.

    The router's products are accumulated in float32, K in ROUTER_SPLITS parts added in order. A row with NaN logits gets
    valid ids.
    """
    num_rows, num_experts = x_RE.shape[0], router_XE.shape[0]
    splits = ROUTER_SPLITS if x_RE.shape[1] % (ROUTER_SPLITS * 16) == 0 else 1
    logits = linear_splits_triton(x_RE, router_XE, splits)
    pdl = overlaps(x_RE.device)
    weights = x_RE.new_empty((num_rows, k), dtype=torch.float32)
    experts = x_RE.new_empty((num_rows, k), dtype=torch.int32)
    _route_kernel[(num_rows,)](
        logits,
        weights,
        experts,
        num_rows,
        splits,
        num_experts,
        k,
        renormalise,
        triton.next_power_of_2(num_experts),
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return weights, experts


def group_triton(experts_Rk: Tensor, num_experts: int) -> Groups:
    """Sort the pairs by expert, ascending within an expert, without the host."""
    num_pairs, pdl = experts_Rk.numel(), overlaps(experts_Rk.device)
    order = experts_Rk.new_empty(num_pairs)
    starts = experts_Rk.new_empty(num_experts + 1)
    block = min(2048, max(32, triton.next_power_of_2(num_pairs)))
    _group_kernel[(num_experts,)](
        experts_Rk, order, starts, num_pairs, num_experts, block, PDL=pdl, launch_pdl=pdl, num_warps=4
    )
    return Groups(order, starts)


def experts_triton(
    x_RE: Tensor,
    experts_Rk: Tensor,
    gate_up_XIE: Tensor,
    down_XEI: Tensor,
    *,
    gate_up_tile: Tile | None = None,
    down_tile: Tile | None = None,
) -> Tensor:
    """Each pair's expert output before its weight: [R * k, E] in x's dtype."""
    (num_rows, hidden), k = x_RE.shape, experts_Rk.shape[1]
    num_experts, inner = down_XEI.shape[0], down_XEI.shape[2]
    groups = None if num_rows <= DIRECT_ROWS else group_triton(experts_Rk, num_experts)
    act = x_RE.new_empty((num_rows * k, inner))
    out = x_RE.new_empty((num_rows * k, hidden))
    gate_up_tile = gate_up_tile or choose_tile(num_rows, k, num_experts, True)
    down_tile = down_tile or choose_tile(num_rows, k, num_experts, False)
    _launch(x_RE, gate_up_XIE, experts_Rk, groups, act, True, gate_up_tile)
    _launch(act, down_XEI, experts_Rk, groups, out, False, down_tile)
    return out


def combine_triton(
    parts_PE: Tensor,
    weights_Rk: Tensor,
    residual_RE: Tensor | None = None,
    norm_E: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """(residual + weighted sum over rank, its RMS norm times `norm_E`), each [R, E]; without norm_E the sum twice."""
    num_rows, k = weights_Rk.shape
    hidden, pdl = parts_PE.shape[1], overlaps(parts_PE.device)
    out = parts_PE.new_empty((num_rows, hidden))
    normed = torch.empty_like(out) if norm_E is not None else out
    block = triton.next_power_of_2(hidden)
    _combine_kernel[(num_rows,)](
        parts_PE,
        weights_Rk,
        residual_RE,
        norm_E,
        out,
        normed,
        eps,
        hidden,
        k,
        residual_RE is not None,
        norm_E is not None,
        block,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=norm_warps(block),
        enable_fp_fusion=False,
    )
    return out, normed


def moe_triton(
    x_RE: Tensor,
    router_XE: Tensor,
    gate_up_XIE: Tensor,
    down_XEI: Tensor,
    k: int,
    renormalise: bool,
    *,
    residual_RE: Tensor | None = None,
    norm_E: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The whole layer; see `route_triton`, `experts_triton`, `combine_triton`.

    x_RE: rows after their norm, contiguous. router: [X, E]; gate_up: [X, 2I, E], gate first; down: [X, E, I]; all contiguous
    and in x's dtype. Returns what `combine_triton` returns.
    """
    weights, experts = route_triton(x_RE, router_XE, k, renormalise)
    parts = experts_triton(x_RE, experts, gate_up_XIE, down_XEI)
    return combine_triton(parts, weights, residual_RE, norm_E, eps)


def choose_tile(num_rows: int, k: int, num_experts: int, gated: bool) -> Tile:
    """The tile of an expert product; BLOCK_M follows the mean number of rows per expert."""
    per_expert = num_rows * k / num_experts
    if num_rows <= DIRECT_ROWS or per_expert <= 16:
        m = min(DIRECT_ROWS, triton.next_power_of_2(num_rows))
        if gated:
            return Tile(m, 8 if m == 1 else 16, 128, 4, 3)
        return Tile(1, 16, 64, 4, 4) if m == 1 else Tile(m, 64, 64, 4, 3)
    if per_expert <= 64:
        return Tile(64, 64, 64, 4, 4, True)
    return Tile(128, 64 if gated else 128, 64, 8, 3, True)


def _launch(x: Tensor, weight: Tensor, experts_Rk: Tensor, groups: Groups | None, out: Tensor, gated: bool, tile: Tile) -> None:
    num_rows, k = experts_Rk.shape
    pdl = overlaps(x.device)
    num_experts, num_pairs, inner = weight.shape[0], num_rows * k, out.shape[1]
    slots = min(num_pairs, num_experts) if groups is None else min(num_pairs, num_pairs // tile.m + num_experts)
    assert groups is not None or num_rows <= tile.m, "direct products hold all rows in one tile"
    _expert_kernel[(triton.cdiv(inner, tile.n), slots)](
        x,
        weight,
        experts_Rk,
        groups.order_P if groups else None,
        groups.starts_X if groups else None,
        out,
        num_rows,
        inner,
        x.shape[1],
        num_experts,
        k,
        CHAINS=num_chains(x.shape[1]),
        GATED=gated,
        GROUPED=groups is not None,
        BY_EXPERT=num_pairs >= num_experts,
        BLOCK_TOP=triton.next_power_of_2(k),
        BLOCK_X=triton.next_power_of_2(num_experts),
        PDL=pdl,
        launch_pdl=pdl,
        **tile.options,
    )
