"""Triton heads: from a row of queries, keys and values side by side to rotated queries and to the cache, before attention.

Legend of shape suffixes: R rows, H query heads, D head size.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import leave_room, overlaps

_PAIRS = 16  # of a program


@triton.jit
def _heads_kernel(
    p_qkv,
    p_q_norm,
    p_k_norm,
    p_cos,
    p_sin,
    p_positions,
    p_entries,
    p_q,
    p_k,
    p_v,
    R,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PAIRS: tl.constexpr,
    PDL: tl.constexpr,
):
    """PAIRS of (row, head) per program, heads in the order q, k, v: norm, rotate, and store to q or to the row's entry."""
    ALL: tl.constexpr = HEADS + 2 * KV_HEADS
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    row = (pair // ALL).to(tl.int64)
    head = pair % ALL
    i = tl.arange(0, BLOCK)[None, :]
    m_row = row < R
    m_i = (i < HALF) & m_row[:, None]
    is_query = (m_row & (head < HEADS))[:, None]
    is_value = (head >= HEADS + KV_HEADS)[:, None]
    if PDL:
        gdc_launch_dependents()
    position = tl.load(p_positions + row, m_row, other=0)[:, None]
    entry = tl.load(p_entries + row, m_row, other=0)
    cos = tl.load(p_cos + position * HALF + i, m_i, other=0.0)
    sin = tl.load(p_sin + position * HALF + i, m_i, other=0.0)
    if HAS_NORM:
        low_q = tl.load(p_q_norm + i, i < HALF, other=0.0).to(tl.float32)
        low_k = tl.load(p_k_norm + i, i < HALF, other=0.0).to(tl.float32)
        high_q = tl.load(p_q_norm + HALF + i, i < HALF, other=0.0).to(tl.float32)
        high_k = tl.load(p_k_norm + HALF + i, i < HALF, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    at = pair.to(tl.int64)[:, None] * (2 * HALF) + i
    low_raw = tl.load(p_qkv + at, m_i, other=0.0)
    high_raw = tl.load(p_qkv + at + HALF, m_i, other=0.0)
    low = low_raw.to(tl.float32)
    high = high_raw.to(tl.float32)
    DTYPE: tl.constexpr = p_q.dtype.element_ty
    if HAS_NORM:
        inverse = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)[:, None]
        low = (low * inverse).to(DTYPE).to(tl.float32) * tl.where(is_query, low_q, low_k)
        high = (high * inverse).to(DTYPE).to(tl.float32) * tl.where(is_query, high_q, high_k)
    low_turned = tl.where(is_value, low_raw, (low * cos - high * sin).to(DTYPE))
    high_turned = tl.where(is_value, high_raw, (high * cos + low * sin).to(DTYPE))
    at_q = (row * HEADS + head)[:, None] * (2 * HALF) + i
    tl.store(p_q + at_q, low_turned, m_i & is_query)
    tl.store(p_q + at_q + HALF, high_turned, m_i & is_query)
    kv_head = (head - HEADS) % KV_HEADS
    at_cache = ((entry // PAGE * KV_HEADS + kv_head) * PAGE + entry % PAGE)[:, None] * (2 * HALF) + i
    m_k = m_i & (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
    tl.store(p_k + at_cache, low_turned, m_k)
    tl.store(p_k + at_cache + HALF, high_turned, m_k)
    tl.store(p_v + at_cache, low_turned, m_i & is_value)
    tl.store(p_v + at_cache + HALF, high_turned, m_i & is_value)


def heads_triton(
    qkv_RC: Tensor,
    q_norm_D: Tensor | None,
    k_norm_D: Tensor | None,
    cos_PD: Tensor,
    sin_PD: Tensor,
    *,
    positions_R: Tensor,
    entries_R: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    eps: float = 1e-6,
) -> Tensor:
    """Per-head RMS norm (where given) and rotary embedding of q and k, K and V written to the rows' entries.

    qkv: [R, (H + 2 * kv heads) * head_dim] contiguous; cos, sin: float32 [positions, head_dim / 2]; positions and entries are
    read as early as `tree_attention_triton` reads its tables. Returns q [R, H, head_dim].
    """
    kv_heads, page, head_dim = k_pages.shape[1:]
    num_rows, pdl = qkv_RC.shape[0], overlaps(qkv_RC.device)
    all_heads = qkv_RC.shape[1] // head_dim
    heads = all_heads - 2 * kv_heads
    q = qkv_RC.new_empty((num_rows, heads, head_dim))
    kernel = _heads_kernel[(triton.cdiv(num_rows * all_heads, _PAIRS),)](
        qkv_RC,
        q_norm_D,
        k_norm_D,
        cos_PD,
        sin_PD,
        positions_R,
        entries_R,
        q,
        k_pages,
        v_pages,
        num_rows,
        eps,
        heads,
        kv_heads,
        head_dim // 2,
        triton.next_power_of_2(head_dim // 2),
        page,
        q_norm_D is not None,
        _PAIRS,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=4,
        enable_fp_fusion=False,
    )
    if pdl and num_rows == 1:
        leave_room(kernel)
    return q
