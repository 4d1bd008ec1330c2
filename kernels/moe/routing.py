"""Triton router: which experts each row goes to, and with what weights. Every row's choice depends on that row alone.

Legend of shape suffixes: R rows, X experts, k experts per row, E hidden size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import leave_room, overlaps
from specdec.kernels.linear.kernel import inverse_rms, linear_splits_triton, norm_warps, rms_norm_triton, scaled

ROUTER_SPLITS = 16


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
def _norm_router_kernel(
    p_x,
    p_norm,
    p_router,
    p_normed,
    p_logits,
    eps,
    X: tl.constexpr,
    E: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_X: tl.constexpr,
    PDL: tl.constexpr,
):
    """The norm and the router's partial logits of a single row; grid (tiles of experts, parts of the row)."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    e = tl.arange(0, BLOCK)
    j = split * PART + tl.arange(0, PART)
    x_id = tile * BLOCK_X + tl.arange(0, BLOCK_X)
    b_norm = tl.load(p_norm + j).to(tl.float32)
    b_router = tl.load(p_router + x_id[:, None] * E + j[None, :], (x_id < X)[:, None], other=0.0)
    if PDL:
        gdc_wait()
    b_x = tl.load(p_x + e, e < E, other=0.0).to(tl.float32)
    b_part = tl.load(p_x + j).to(tl.float32)
    normed = scaled(b_part, inverse_rms(b_x, eps, E), b_norm, p_normed.dtype.element_ty)
    logits = tl.dot(normed[None, :], b_router.T)
    if tile == 0:
        tl.store(p_normed + j, normed)
    tl.store(p_logits + split * X + x_id[None, :], logits, (x_id < X)[None, :])


def route_triton(x_RE: Tensor, router_XE: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The k experts of each row, best first, ties to the lower id: float32 [R, k] weights, int32 [R, k] expert ids.

    The router's products are accumulated in float32, K in ROUTER_SPLITS parts added in order. A row with NaN logits gets
    valid ids.
    """
    return _choose_experts(linear_splits_triton(x_RE, router_XE, _router_splits(x_RE)), k, renormalise)


def norm_and_route_triton(
    x_RE: Tensor, norm_E: Tensor, eps: float, router_XE: Tensor, k: int, renormalise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The RMS norm of x, and `route_triton` of that: [R, E], weights, ids. A single row needs a launch less."""
    num_rows, hidden = x_RE.shape
    splits, block = _router_splits(x_RE), triton.next_power_of_2(hidden)
    part = hidden // splits
    if num_rows > 1 or splits == 1 or part != triton.next_power_of_2(part):
        normed = rms_norm_triton(x_RE, norm_E, eps)
        return normed, *route_triton(normed, router_XE, k, renormalise)
    num_experts, block_x, pdl = router_XE.shape[0], 16, overlaps(x_RE.device)
    normed = torch.empty_like(x_RE)
    logits = x_RE.new_empty((splits, 1, num_experts), dtype=torch.float32)
    kernel = _norm_router_kernel[(triton.cdiv(num_experts, block_x), splits)](
        x_RE,
        norm_E,
        router_XE,
        normed,
        logits,
        eps,
        num_experts,
        hidden,
        part,
        block,
        block_x,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=norm_warps(block),
        enable_fp_fusion=False,
    )
    if pdl:
        leave_room(kernel)
    return normed, *_choose_experts(logits, k, renormalise)


def _router_splits(x_RE: Tensor) -> int:
    return ROUTER_SPLITS if x_RE.shape[1] % (ROUTER_SPLITS * 16) == 0 else 1


def _choose_experts(logits: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """From partial logits [splits, R, X]."""
    splits, num_rows, num_experts = logits.shape
    pdl = overlaps(logits.device)
    weights = logits.new_empty((num_rows, k))
    experts = logits.new_empty((num_rows, k), dtype=torch.int32)
    kernel = _route_kernel[(num_rows,)](
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
    if pdl and num_rows == 1:
        leave_room(kernel)
    return weights, experts
