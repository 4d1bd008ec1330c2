"""Triton heads: from a row of queries, keys and values side by side to rotated queries and to the cache, before attention.

Legend of shape suffixes: R rows, H query heads, D head size.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.linear.kernel import overlaps


@triton.jit
def _heads_kernel(
    p_qkv,
    p_q_norm,
    p_k_norm,
    p_cos,
    p_sin,
    p_positions,
    p_slots,
    p_q,
    p_k,
    p_v,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """One (row, head) per program, heads in the order q, k, v: norm, rotate, and store to q or to the row's slot."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    i = tl.arange(0, BLOCK)
    m_i = i < HALF
    if PDL:
        gdc_launch_dependents()
    position = tl.load(p_positions + row)
    slot = tl.load(p_slots + row)
    cos = tl.load(p_cos + position * HALF + i, m_i, other=0.0)
    sin = tl.load(p_sin + position * HALF + i, m_i, other=0.0)
    if HAS_NORM:
        p_norm = tl.where(head < HEADS, p_q_norm.to(tl.int64, bitcast=True), p_k_norm.to(tl.int64, bitcast=True))
        p_norm = p_norm.to(tl.pointer_type(p_q_norm.dtype.element_ty), bitcast=True) + i
        low_norm = tl.load(p_norm, m_i, other=0.0).to(tl.float32)
        high_norm = tl.load(p_norm + HALF, m_i, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    at = p_qkv + (row * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + i
    low = tl.load(at, m_i, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, m_i, other=0.0).to(tl.float32)
    DTYPE: tl.constexpr = p_q.dtype.element_ty
    if head < HEADS + KV_HEADS:
        if HAS_NORM:
            inverse = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / (2 * HALF) + eps)
            low = (low * inverse).to(DTYPE).to(tl.float32) * low_norm
            high = (high * inverse).to(DTYPE).to(tl.float32) * high_norm
        turned = low * cos - high * sin
        high = high * cos + low * sin
        low = turned
    kv_head = (head - HEADS) % KV_HEADS
    at_cache = ((slot // PAGE * KV_HEADS + kv_head) * PAGE + slot % PAGE) * (2 * HALF) + i
    if head < HEADS:
        p_out = p_q + (row * HEADS + head) * (2 * HALF) + i
    elif head < HEADS + KV_HEADS:
        p_out = p_k + at_cache
    else:
        p_out = p_v + at_cache
    tl.store(p_out, low.to(DTYPE), m_i)
    tl.store(p_out + HALF, high.to(DTYPE), m_i)


def heads_triton(
    qkv_RC: Tensor,
    q_norm_D: Tensor | None,
    k_norm_D: Tensor | None,
    cos_PD: Tensor,
    sin_PD: Tensor,
    *,
    positions_R: Tensor,
    slots_R: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """Per-head RMS norm (where given) and rotary embedding of q and k, K and V written to the rows' slots.

    qkv: [R, (H + 2 * kv heads) * head_dim] contiguous; cos, sin: float32 [positions, head_dim / 2]; positions and slots are
    read as early as `tree_attention_triton` reads its tables. Returns q [R, H, head_dim].
    """
    kv_heads, page, head_dim = k_pages.shape[1:]
    num_rows, pdl = qkv_RC.shape[0], overlaps(qkv_RC.device)
    all_heads = qkv_RC.shape[1] // head_dim
    heads = all_heads - 2 * kv_heads
    q = qkv_RC.new_empty((num_rows, heads, head_dim))
    _heads_kernel[(num_rows, all_heads)](
        qkv_RC,
        q_norm_D,
        k_norm_D,
        cos_PD,
        sin_PD,
        positions_R,
        slots_R,
        q,
        k_pages,
        v_pages,
        eps,
        heads,
        kv_heads,
        head_dim // 2,
        triton.next_power_of_2(head_dim // 2),
        page,
        q_norm_D is not None,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return q
