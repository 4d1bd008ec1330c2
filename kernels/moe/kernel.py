"""Triton mixture of experts, weight-major: a touched expert's weights stream once, for all of its rows.

Few rows (up to DIRECT_ROWS): every program multiplies all rows by its expert's tile and stores those that chose it; the
programs of an expert that an earlier row chose already leave at once. Both products are one launch. More rows: a counting
sort on the device lists the (row, rank) pairs by expert, and tiles of that list are multiplied. Both give a pair the same
bits, since every product is a GEMM row with fixed accumulator chains; the k results of a row are added by one writer, whose
order is the same for every row.

Legend of shape suffixes: R rows, X experts, k experts per row, E hidden size, I expert's inner size, P pairs (row * k + rank).
"""

import functools
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import overlaps, shared_memory
from specdec.kernels.linear.kernel import chained_product, num_chains
from specdec.kernels.moe.combine import combine_triton
from specdec.kernels.moe.routing import norm_and_route_triton
from specdec.kernels.tile_tables import Product, Tile, measured, remembered, row_bucket

DIRECT_ROWS = 16


@dataclass(frozen=True, slots=True)
class Groups:
    """Pairs sorted by expert: order_P int32 pairs, starts_X int32 [X + 1] where each expert's run begins."""

    order_P: Tensor
    starts_X: Tensor


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
def _rows_of_slot(
    p_experts,
    slot,
    R,
    X: tl.constexpr,
    TOP_K: tl.constexpr,
    BY_EXPERT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
):
    """(expert, has, pair, active) of a slot: a pair, whose expert is done there if no earlier row chose it, or an expert."""
    m = tl.arange(0, BLOCK_M)
    rank = tl.arange(0, BLOCK_TOP)
    m_chosen = (m[:, None] < R) & (rank[None, :] < TOP_K)
    chosen = tl.load(p_experts + m[:, None] * TOP_K + rank[None, :], m_chosen, other=X)
    expert = slot if BY_EXPERT else tl.load(p_experts + slot)
    match = chosen == expert
    has = tl.max(match.to(tl.int32), 1) > 0
    pair = m * TOP_K + tl.sum(tl.where(match, rank[None, :], 0), 1)
    first_row = tl.min(tl.where(has, m, BLOCK_M), 0)
    active = first_row < BLOCK_M if BY_EXPERT else first_row == slot // TOP_K
    return expert, has, pair, active


@triton.jit
def _expert_tile(
    p_x,
    p_w,
    p_out,
    expert,
    pair,
    has,
    tile_n,
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    CHAINS: tl.constexpr,
    IN_TURN: tl.constexpr,
    GATED: tl.constexpr,
    WAIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    p_arrived=None,
    arrivals: tl.constexpr = 0,
):
    """out[pair] = silu(gate) * up of x[row] (GATED: w [X, 2N, K]) or w x[pair] (w [X, N, K]), for one tile of columns."""
    p_w_expert = p_w + expert.to(tl.int64) * ((2 if GATED else 1) * N * K)
    WIDE: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    j = tl.arange(0, WIDE)
    column = tile_n * BLOCK_N + j % BLOCK_N
    # the tile's gate rows, then its up rows
    p_ws = p_w_expert + (column + j // BLOCK_N * N) * K
    source = pair // TOP_K if GATED else pair
    p_xs = p_x + source.to(tl.int64) * K
    acc = chained_product(
        p_xs, p_ws, has, column < N, K, CHAINS, IN_TURN, WAIT, BLOCK_M, WIDE, BLOCK_K, STAGES, p_arrived, arrivals
    )  # fmt: skip
    DTYPE: tl.constexpr = p_out.dtype.element_ty
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N)), (0, 2, 1)))
        gate = gate.to(DTYPE).to(tl.float32)
        acc = (gate / (1.0 + tl.exp(-gate))).to(DTYPE).to(tl.float32) * up.to(DTYPE).to(tl.float32)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = n < N
    tl.store(p_out + pair.to(tl.int64)[:, None] * N + n[None, :], acc.to(DTYPE), has[:, None] & m_n[None, :])


@triton.jit
def _direct_kernel(
    p_x,
    p_gate_up,
    p_down,
    p_experts,
    p_arrivals,
    p_act,
    p_out,
    R,
    slots,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    X: tl.constexpr,
    TOP_K: tl.constexpr,
    GATE_CHAINS: tl.constexpr,
    DOWN_CHAINS: tl.constexpr,
    BY_EXPERT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GATE_N: tl.constexpr,
    GATE_K: tl.constexpr,
    GATE_STAGES: tl.constexpr,
    DOWN_N: tl.constexpr,
    DOWN_K: tl.constexpr,
    DOWN_STAGES: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
    PDL: tl.constexpr,
):
    """Both products of few rows: the programs of gate and up, slot by slot, then those of down, which wait for their slot only.

    So memory idles less between the two products. Programs start in the order of their index: whoever waits, waits for
    programs that have started. p_arrivals, one per slot, is 0 at the start.
    """
    GATE_TILES: tl.constexpr = (INNER + GATE_N - 1) // GATE_N
    DOWN_TILES: tl.constexpr = (HIDDEN + DOWN_N - 1) // DOWN_N
    if PDL:
        # the routing was written just before; who starts after this kernel may read it without a wait
        gdc_wait()
        gdc_launch_dependents()
    index = tl.program_id(0)
    if index < slots * GATE_TILES:
        slot = index // GATE_TILES
        expert, has, pair, active = _rows_of_slot(p_experts, slot, R, X, TOP_K, BY_EXPERT, BLOCK_M, BLOCK_TOP)
        if active:
            _expert_tile(
                p_x, p_gate_up, p_act, expert, pair, has, index % GATE_TILES,
                INNER, HIDDEN, TOP_K, GATE_CHAINS, False, True, False, BLOCK_M, GATE_N, GATE_K, GATE_STAGES,
            )  # fmt: skip
            tl.debug_barrier()  # all threads have stored before one of them says so
            tl.atomic_add(p_arrivals + slot, 1, sem="release")
    else:
        index -= slots * GATE_TILES
        slot = index // DOWN_TILES
        expert, has, pair, active = _rows_of_slot(p_experts, slot, R, X, TOP_K, BY_EXPERT, BLOCK_M, BLOCK_TOP)
        if active:
            _expert_tile(
                p_act, p_down, p_out, expert, pair, has, index % DOWN_TILES,
                HIDDEN, INNER, TOP_K, DOWN_CHAINS, False, False, True, BLOCK_M, DOWN_N, DOWN_K, DOWN_STAGES,
                p_arrivals + slot, GATE_TILES,
            )  # fmt: skip


@triton.jit
def _grouped_kernel(
    p_x,
    p_w,
    p_order,
    p_starts,
    p_out,
    N: tl.constexpr,
    K: tl.constexpr,
    X: tl.constexpr,
    TOP_K: tl.constexpr,
    CHAINS: tl.constexpr,
    IN_TURN: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_X: tl.constexpr,
    PDL: tl.constexpr,
):
    """One of the products of many rows; grid (column tiles, tiles of the sorted pairs)."""
    tile_n = tl.program_id(0)
    slot = tl.program_id(1)
    if PDL:
        if GATED:
            # as in `_direct_kernel`
            gdc_wait()
        gdc_launch_dependents()
    m = tl.arange(0, BLOCK_M)
    x_id = tl.arange(0, BLOCK_X)
    starts = tl.load(p_starts + x_id, x_id < X, other=0)
    counts = tl.load(p_starts + x_id + 1, x_id < X, other=0) - starts
    tiles = (counts + BLOCK_M - 1) // BLOCK_M
    until = tl.cumsum(tl.where(x_id < X, tiles, 0), 0)
    expert = tl.sum(((until <= slot) & (x_id < X)).to(tl.int32), 0)
    is_expert = x_id == expert
    first = (slot - tl.sum(tl.where(is_expert, until - tiles, 0), 0)) * BLOCK_M
    has = m < tl.sum(tl.where(is_expert, counts, 0), 0) - first
    pair = tl.load(p_order + tl.sum(tl.where(is_expert, starts, 0), 0) + first + m, has, other=0)
    if expert >= X:
        if PDL and not GATED:
            gdc_wait()
        return
    _expert_tile(
        p_x, p_w, p_out, expert, pair, has, tile_n,
        N, K, TOP_K, CHAINS, IN_TURN, GATED, PDL and not GATED, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip


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
    arrivals: Tensor | None = None,
    gate_up_tile: Tile | None = None,
    down_tile: Tile | None = None,
) -> Tensor:
    """Each pair's expert output before its weight: [R * k, E] in x's dtype.

    arrivals: int32, zeros, one per pair at least; `combine_triton` makes them zeros again. Used up to DIRECT_ROWS rows.
    """
    (num_rows, hidden), k = x_RE.shape, experts_Rk.shape[1]
    num_experts, inner = down_XEI.shape[0], down_XEI.shape[2]
    act = x_RE.new_empty((num_rows * k, inner))
    out = x_RE.new_empty((num_rows * k, hidden))
    gate_up_tile = gate_up_tile or device_tile(num_rows, k, num_experts, inner, hidden, True, x_RE.device)
    down_tile = down_tile or device_tile(num_rows, k, num_experts, hidden, inner, False, x_RE.device)
    if num_rows > DIRECT_ROWS:
        groups = group_triton(experts_Rk, num_experts)
        _launch_grouped(x_RE, gate_up_XIE, k, groups, act, True, gate_up_tile)
        _launch_grouped(act, down_XEI, k, groups, out, False, down_tile)
        return out
    assert num_rows <= gate_up_tile.m == down_tile.m, "direct products hold all rows in one tile"
    assert gate_up_tile.warps == down_tile.warps, "one kernel does both"
    if arrivals is None:
        arrivals = experts_Rk.new_zeros(num_rows * k)
    pdl = overlaps(x_RE.device)
    slots = min(num_rows * k, num_experts)
    programs = slots * (triton.cdiv(inner, gate_up_tile.n) + triton.cdiv(hidden, down_tile.n))
    _direct_kernel[(programs,)](
        x_RE,
        gate_up_XIE,
        down_XEI,
        experts_Rk,
        arrivals,
        act,
        out,
        num_rows,
        slots,
        hidden,
        inner,
        num_experts,
        k,
        num_chains(hidden),
        num_chains(inner),
        BY_EXPERT=num_rows * k >= num_experts,
        BLOCK_M=gate_up_tile.m,
        GATE_N=gate_up_tile.n,
        GATE_K=gate_up_tile.k,
        GATE_STAGES=gate_up_tile.stages,
        DOWN_N=down_tile.n,
        DOWN_K=down_tile.k,
        DOWN_STAGES=down_tile.stages,
        BLOCK_TOP=triton.next_power_of_2(k),
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=gate_up_tile.warps,
        enable_fp_fusion=False,
    )
    return out


def moe_triton(
    x_RE: Tensor,
    router_XE: Tensor,
    gate_up_XIE: Tensor,
    down_XEI: Tensor,
    k: int,
    renormalise: bool,
    *,
    norm_E: Tensor,
    next_norm_E: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """The whole layer; see `norm_and_route_triton`, `experts_triton`, `combine_triton`.

    x_RE: rows before their norm, contiguous. router: [X, E]; gate_up: [X, 2I, E], gate first; down: [X, E, I]; all contiguous
    and in x's dtype. Returns x with the layer's output added, and that behind the next norm, where there is one.
    """
    normed, weights, experts = norm_and_route_triton(x_RE, norm_E, eps, router_XE, k, renormalise)
    arrivals = _arrivals(x_RE.device, DIRECT_ROWS * k)[: len(x_RE) * k] if len(x_RE) <= DIRECT_ROWS else None
    try:
        parts = experts_triton(normed, experts, gate_up_XIE, down_XEI, arrivals=arrivals)
        return combine_triton(parts, weights, x_RE, next_norm_E, eps, arrivals=arrivals)
    except Exception:
        # no memory for the result, say: the next layer must not find this one's counts
        if arrivals is not None:
            arrivals.zero_()
        raise


@functools.cache
def _arrivals(device: torch.device, size: int) -> Tensor:
    """Counters that are zeros between two layers; all layers of a device share them, since its layers run one by one."""
    with torch.inference_mode(False):  # so that they may be changed in that mode and outside of it, whoever comes first
        return torch.zeros(size, dtype=torch.int32, device=device)


def choose_tile(num_rows: int, k: int, num_experts: int, gated: bool) -> Tile:
    """The tile of an expert product; BLOCK_M follows the mean number of rows per expert."""
    if num_rows <= DIRECT_ROWS:
        m = triton.next_power_of_2(num_rows)
        if gated:
            return Tile(m, 8 if m <= 8 else 16, 128, 4, 3)
        return Tile(m, 32 if m <= 8 else 64, 64, 4, 4 if m == 1 else 3)
    per_expert = num_rows * k / num_experts
    if per_expert <= 8:
        if gated:
            return Tile(16, 16, 128, 4, 3)
        return Tile(16, 64, 64, 4, 2) if per_expert <= 2 else Tile(16, 128, 64, 4, 4, True)
    if per_expert <= 16:
        return Tile(32, 64, 128, 4, 3, True) if gated else Tile(32, 128, 64, 4, 4, True)
    if gated and per_expert > 256:
        return Tile(128, 64, 64, 8, 4, True)
    return Tile(64, 64 if gated else 128, 64, 4, 4, True)


@remembered
def device_tile(num_rows: int, k: int, num_experts: int, outputs: int, inputs: int, gated: bool, device: torch.device) -> Tile:
    """The measured tile, else `choose_tile`'s, fitted to the device."""
    rule = choose_tile(num_rows, k, num_experts, gated)
    product = Product("gate_up" if gated else "down", row_bucket(num_rows), outputs, inputs, num_experts, k)
    tile = measured(product, device) or rule
    if num_rows <= DIRECT_ROWS:  # one kernel does both products, all rows in one tile
        tile = replace(tile, m=rule.m, warps=rule.warps, in_turn=rule.in_turn)
    return tile.fitted(*shared_memory(device), 2 if gated else 1)


def _launch_grouped(x: Tensor, weight: Tensor, k: int, groups: Groups, out: Tensor, gated: bool, tile: Tile) -> None:
    num_pairs, pdl = len(groups.order_P), overlaps(x.device)
    num_experts, inner = weight.shape[0], out.shape[1]
    slots = min(num_pairs, num_pairs // tile.m + num_experts)
    _grouped_kernel[(triton.cdiv(inner, tile.n), slots)](
        x,
        weight,
        groups.order_P,
        groups.starts_X,
        out,
        inner,
        x.shape[1],
        num_experts,
        k,
        CHAINS=num_chains(x.shape[1]),
        GATED=gated,
        BLOCK_X=triton.next_power_of_2(num_experts),
        PDL=pdl,
        launch_pdl=pdl,
        **tile.options,
    )
