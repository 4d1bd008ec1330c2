"""Triton combination of a mixture of experts: a row's k results, weighted, added in one order by one writer.

Legend of shape suffixes: R rows, k experts per row, E hidden size, P pairs (row * k + rank).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import overlaps
from specdec.kernels.linear.kernel import norm_warps, normalised


@triton.jit
def _combine_kernel(
    p_parts,
    p_weights,
    p_residual,
    p_norm,
    p_arrivals,
    p_out,
    p_normed,
    eps,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    RESETS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TOP: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row per program: out = residual + sum over rank of weight * part; then the next layer's norm.

    The kernel before lets this one start only when what precedes the experts is there: weights and residual need no wait.
    """
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
    e = tl.arange(0, BLOCK)
    rank = tl.arange(0, BLOCK_TOP)
    m_e = e < E
    m_rank = rank < TOP_K
    weights = tl.load(p_weights + row * TOP_K + rank, m_rank, other=0.0)
    if HAS_RESIDUAL:
        b_residual = tl.load(p_residual + row * E + e, m_e, other=0.0).to(tl.float32)
    if HAS_NORM:
        b_norm = tl.load(p_norm + e, m_e, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    # all loads at once: they are what this kernel waits for
    at = (row * TOP_K + rank)[:, None] * E + e[None, :]
    parts = tl.load(p_parts + at, m_rank[:, None] & m_e[None, :], other=0.0).to(tl.float32)
    acc = tl.sum(parts * weights[:, None], 0)
    if RESETS:
        tl.store(p_arrivals + row * TOP_K + rank, tl.zeros((BLOCK_TOP,), tl.int32), m_rank)
    DTYPE: tl.constexpr = p_out.dtype.element_ty
    acc = acc.to(DTYPE).to(tl.float32)
    if HAS_RESIDUAL:
        acc = (acc + b_residual).to(DTYPE).to(tl.float32)
    tl.store(p_out + row * E + e, acc.to(DTYPE), m_e)
    if HAS_NORM:
        tl.store(p_normed + row * E + e, normalised(acc, b_norm, eps, E, DTYPE), m_e)


def combine_triton(
    parts_PE: Tensor,
    weights_Rk: Tensor,
    residual_RE: Tensor | None = None,
    norm_E: Tensor | None = None,
    eps: float = 1e-6,
    *,
    arrivals: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(residual + weighted sum over rank, its RMS norm times `norm_E`), each [R, E]; without norm_E the sum twice.

    weights and residual are read before the kernel just before this one, which made the parts, has ended. arrivals: see
    `experts_triton`.
    """
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
        arrivals,
        out,
        normed,
        eps,
        hidden,
        k,
        residual_RE is not None,
        norm_E is not None,
        arrivals is not None,
        block,
        triton.next_power_of_2(k),
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=norm_warps(block),
        enable_fp_fusion=False,
    )
    return out, normed
