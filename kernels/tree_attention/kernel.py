"""Triton tree attention: any tree over a paged cache, each row bitwise what it would be decoding alone.

Keys are visited in tiles of one page, each key in the lane of its absolute position; tiles at fixed positions form a split,
whose tiles run through one online softmax, and splits merge in ascending order. Where a key is read from (its page, a scratch
entry), which rows share a program and whether splits merge in registers or through memory are free choices: a masked lane
adds nothing, whatever lies there, row sums are matrix products with ones (one order of addition in every tile shape), and
multiplications and additions are never contracted.

A program holds `ROWS` neighbouring rows times the query heads of one kv head. Legend: R rows, S sequences, P pages of the
longest sequence, D depths, H query heads.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import leave_room, overlaps
from specdec.kernels.tree_attention.plans import Plan, choose_plan
from specdec.kernels.tree_attention.rows import CHANGING, attend_row_kernel
from specdec.kernels.tree_attention.splits import (
    TILE,
    merge_step,
    num_splits,
    scores,
    softmax_step,
    split_of,
    split_start,
)

if TYPE_CHECKING:
    from specdec.kernels.tree_attention import AttentionTables


@triton.jit(do_not_specialize=CHANGING)
def _attend_kernel(
    p_q,
    p_k,
    p_v,
    p_out,
    p_tops,
    p_totals,
    p_positions,
    p_sequences,
    p_bases,
    p_pages,
    p_ancestors,
    R,
    P,
    D,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    FUSED: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ROWS rows, kv heads, splits).

    p_out: float32 sums [split, R, H, HEAD_DIM], beside p_tops and p_totals; FUSED: the result [R, H, HEAD_DIM].
    """
    kv_head = tl.program_id(1)
    m = tl.arange(0, BLOCK_M)
    local = m // BLOCK_GROUP
    first_row = tl.program_id(0) * ROWS
    row = first_row + local
    head = kv_head * GROUP + m % BLOCK_GROUP
    m_m = (local < ROWS) & (row < R) & (m % BLOCK_GROUP < GROUP)
    d = tl.arange(0, BLOCK_DIM)
    m_d = d < HEAD_DIM
    lane = tl.arange(0, TILE)
    ones = tl.full((TILE, 16), 1.0, p_v.dtype.element_ty)
    position = tl.load(p_positions + row, m_m, other=-1).to(tl.int32)
    sequence = tl.load(p_sequences + row, m_m, other=-1).to(tl.int32)
    first_sequence = tl.load(p_sequences + first_row).to(tl.int32)
    last_sequence = tl.max(sequence, 0)
    split = tl.program_id(2)
    first = 0 if FUSED else split_start(split)
    if PDL:
        gdc_launch_dependents()
    if first > tl.max(position, 0):
        return
    if PDL:
        gdc_wait()
    at_q = (row.to(tl.int64) * (KV_HEADS * GROUP) + head)[:, None] * HEAD_DIM + d[None, :]
    m_q = m_m[:, None] & m_d[None, :]
    b_q = tl.load(p_q + at_q, m_q, other=0.0)

    top, totals, acc = _no_keys(BLOCK_M, BLOCK_DIM)
    all_top, all_totals, all_acc = _no_keys(BLOCK_M, BLOCK_DIM)
    all_total = tl.max(all_totals, 1)
    for seq in range(first_sequence, last_sequence + 1):
        mine = sequence == seq
        base = tl.load(p_bases + seq).to(tl.int32)
        high = tl.max(tl.where(mine, position, -1), 0)
        low = first
        # every row sees the tiles whole that lie between these two, each a multiple of TILE
        whole = tl.min(tl.where(mine, position, tl.where(m_m, -1, 1 << 30)), 0) + 1
        windowed = low
        if WINDOW > 0:
            oldest = tl.min(tl.where(mine, position, 1 << 30), 0) - WINDOW + 1
            low = tl.maximum(low, oldest // TILE * TILE)
            windowed = tl.maximum((high - WINDOW + TILE) // TILE * TILE, low)
        end = high + 1
        if not FUSED:
            end = tl.minimum(split_start(split + 1), end)
        whole = tl.maximum(tl.minimum(tl.minimum(base, whole) // TILE * TILE, end), low)
        if WINDOW > 0:
            windowed = tl.maximum(tl.minimum(windowed, end), low)
            whole = tl.maximum(whole, windowed)
            for start in tl.range(low, windowed, TILE, num_stages=1):
                top, totals, acc = _masked_tile(
                    b_q, p_k, p_v, p_pages + seq * P, p_ancestors, top, totals, acc, start, row, position, mine, base, high, D,
                    kv_head, KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE, TILE, SCALE, WINDOW, SOFTCAP,
                )  # fmt: skip
                if FUSED and split_of(start + TILE) != split_of(start):
                    all_top, all_total, all_acc = merge_step(all_top, all_total, all_acc, top, tl.max(totals, 1), acc)
                    top, totals, acc = _no_keys(BLOCK_M, BLOCK_DIM)
        # nothing is hidden in these, and the compiler loads them ahead
        for start in tl.range(windowed, whole, TILE, num_stages=STAGES):
            at_page = _page_keys(p_pages + seq * P, start + lane, start, kv_head, KV_HEADS, PAGE)
            at_kv = at_page[:, None] * HEAD_DIM + d[None, :]
            b_k = tl.load(p_k + at_kv, m_d[None, :], other=0.0)
            b_v = tl.load(p_v + at_kv, m_d[None, :], other=0.0)
            weights, factor, top = softmax_step(scores(b_q, b_k, SCALE, SOFTCAP), top)
            weights = weights.to(b_v.dtype)
            totals = tl.dot(weights, ones, totals * factor[:, None])
            acc = tl.dot(weights, b_v, acc * factor[:, None])
            if FUSED and split_of(start + TILE) != split_of(start):
                all_top, all_total, all_acc = merge_step(all_top, all_total, all_acc, top, tl.max(totals, 1), acc)
                top, totals, acc = _no_keys(BLOCK_M, BLOCK_DIM)
        for start in tl.range(whole, end, TILE, num_stages=1):
            top, totals, acc = _masked_tile(
                b_q, p_k, p_v, p_pages + seq * P, p_ancestors, top, totals, acc, start, row, position, mine, base, high, D,
                kv_head, KV_HEADS, HEAD_DIM, BLOCK_DIM, PAGE, TILE, SCALE, WINDOW, SOFTCAP,
            )  # fmt: skip
            if FUSED and split_of(start + TILE) != split_of(start):
                all_top, all_total, all_acc = merge_step(all_top, all_total, all_acc, top, tl.max(totals, 1), acc)
                top, totals, acc = _no_keys(BLOCK_M, BLOCK_DIM)
        if FUSED:
            # the split that the sequence ends in; where it ended before, nothing
            all_top, all_total, all_acc = merge_step(all_top, all_total, all_acc, top, tl.max(totals, 1), acc)
            top, totals, acc = _no_keys(BLOCK_M, BLOCK_DIM)
    if FUSED:
        tl.store(p_out + at_q, (all_acc / all_total[:, None]).to(p_out.dtype.element_ty), m_q)
    else:
        at_split = tl.cast(split, tl.int64) * R * (KV_HEADS * GROUP)
        at_row = at_split + row.to(tl.int64) * (KV_HEADS * GROUP) + head
        tl.store(p_tops + at_row, top, m_m)
        # every column of the product with ones holds the sum
        tl.store(p_totals + at_row, tl.max(totals, 1), m_m)
        tl.store(p_out + at_split * HEAD_DIM + at_q, acc, m_q)


@triton.jit
def _no_keys(BLOCK_M: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """(maximum, sum of weights in 16 columns, sum of weighted values) of no key."""
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    return top, tl.zeros((BLOCK_M, 16), tl.float32), tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)


@triton.jit
def _page_keys(p_row_pages, key, start, kv_head, KV_HEADS: tl.constexpr, PAGE: tl.constexpr):
    """Where the keys of the tile that begins at `start` lie in their page, as indices of rows of HEAD_DIM."""
    page = tl.load(p_row_pages + start // PAGE)
    return (page * KV_HEADS + kv_head) * PAGE + key % PAGE


@triton.jit
def _masked_tile(
    b_q,
    p_k,
    p_v,
    p_row_pages,
    p_ancestors,
    top,
    totals,
    acc,
    start,
    row,
    position,
    mine,
    base,
    high,
    D,
    kv_head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """(maximum, sums of weights, sums of values) with one tile more, of which some rows see a part or nothing.

    What a row does not see is selected away, and never weighted by 0: it may be NaN. So a value that is not finite is taken out
    of the product, and makes NaN of the scores of those who see it.
    """
    d = tl.arange(0, BLOCK_DIM)
    m_d = d < HEAD_DIM
    key = start + tl.arange(0, TILE)
    ones = tl.full((TILE, 16), 1.0, p_v.dtype.element_ty)
    at_page = _page_keys(p_row_pages, key, start, kv_head, KV_HEADS, PAGE)
    m_kv = ((key <= high) & (key < base))[:, None] & m_d[None, :]
    at_kv = at_page[:, None] * HEAD_DIM + d[None, :]
    b_k = tl.load(p_k + at_kv, m_kv, other=0.0)
    b_v = tl.load(p_v + at_kv, m_kv, other=0.0)
    finite = tl.min((tl.abs(b_v.to(tl.float32)) < float("inf")).to(tl.int32), 1) > 0
    b_v = tl.where(finite[:, None], b_v, 0.0)
    s = tl.where(finite[None, :], scores(b_q, b_k, SCALE, SOFTCAP), float("nan"))
    # rows of the tree read these tiles each for itself
    own = mine & (position >= base)
    own_first = tl.min(tl.where(own, row, 1 << 30), 0)
    own_end = tl.max(tl.where(own, row, -1), 0) + 1
    for r in range(own_first, own_end):
        at_r = _own_entries(p_ancestors, at_page, r, key, base, high, D, kv_head, KV_HEADS, PAGE)
        m_r = _in_sight(key, tl.max(tl.where(row == r, position, -1), 0), WINDOW)[:, None] & m_d[None, :]
        b_k_r = tl.load(p_k + at_r[:, None] * HEAD_DIM + d[None, :], m_r, other=0.0)
        s = tl.where((row == r)[:, None], scores(b_q, b_k_r, SCALE, SOFTCAP), s)
    s = tl.where(mine[:, None] & _in_sight(key[None, :], position[:, None], WINDOW), s, float("-inf"))
    weights, factor, top = softmax_step(s, top)
    weights = weights.to(b_v.dtype)
    totals = tl.dot(weights, ones, totals * factor[:, None])
    scaled = acc * factor[:, None]
    acc = tl.dot(weights, b_v, scaled)
    for r in range(own_first, own_end):
        at_r = _own_entries(p_ancestors, at_page, r, key, base, high, D, kv_head, KV_HEADS, PAGE)
        m_r = _in_sight(key, tl.max(tl.where(row == r, position, -1), 0), WINDOW)[:, None] & m_d[None, :]
        b_v_r = tl.load(p_v + at_r[:, None] * HEAD_DIM + d[None, :], m_r, other=0.0)
        acc = tl.where((row == r)[:, None], tl.dot(weights, b_v_r, scaled), acc)
    return top, totals, acc


@triton.jit
def _in_sight(key, position, WINDOW: tl.constexpr):
    """Which keys a row at a position sees."""
    keep = key <= position
    if WINDOW > 0:
        keep = keep & (key > position - WINDOW)
    return keep


@triton.jit
def _own_entries(p_ancestors, at_page, r, key, base, high, D, kv_head, KV_HEADS: tl.constexpr, PAGE: tl.constexpr):
    """Where row r's key of each lane lies: in its page below the base, at its ancestor's entry above."""
    in_tree = key >= base
    depth = tl.minimum(key - base, D - 1)
    entry = tl.load(p_ancestors + r * D + depth, in_tree & (key <= high), other=0)
    return tl.where(in_tree, (entry // PAGE * KV_HEADS + kv_head) * PAGE + entry % PAGE, at_page)


@triton.jit(do_not_specialize_on_alignment=["R"])
def _merge_kernel(
    p_acc,
    p_tops,
    p_totals,
    p_positions,
    p_out,
    R,
    H: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_H heads of a row per program: merge their splits in ascending order."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_DIM)
    m_h = head < H
    m_out = m_h[:, None] & (d < HEAD_DIM)[None, :]
    num_splits = split_of(tl.load(p_positions + row).to(tl.int32)) + 1
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = row * H + head
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_DIM), tl.float32)
    for start in range(0, num_splits, CHUNK):
        for step in tl.static_range(CHUNK):
            split = start + step
            m_split = m_h & (head * 0 + split < num_splits)
            at_split = tl.cast(split, tl.int64) * R * H + at
            split_top = tl.load(p_tops + at_split, m_split, other=float("-inf"))
            split_total = tl.load(p_totals + at_split, m_split, other=0.0)
            m_acc = m_split[:, None] & m_out
            split_acc = tl.load(p_acc + at_split[:, None] * HEAD_DIM + d[None, :], m_acc, other=0.0)
            top, total, acc = merge_step(top, total, acc, split_top, split_total, split_acc)
    out = (acc / total[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + at[:, None] * HEAD_DIM + d[None, :], out, m_out)


def tree_attention_triton(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    tables: "AttentionTables",
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """As `specdec.kernels.tree_attention.tree_attention`: prompt rows and trees in launches of their own, each with its plan.

    The tables' max_positions bounds positions_R + 1 and sizes the launch, so that a captured graph serves all lengths up to it.
    The tables, and the keys below starts_M, where this round's own begin, may be read before the kernels just before this one
    have ended: at least one kernel that does not let its successor start early (the embedding's, any of PyTorch's) must lie
    between their writing and this call, in stream order.
    """
    out = torch.empty_like(q_RHD)
    num_rows, chunk = len(tables.positions_R), tables.num_chunk
    for rows, sequences in ((slice(0, chunk), tables.chunk_sequences), (slice(chunk, num_rows), tables.tree_sequences)):
        if rows.start < rows.stop:
            _attend(q_RHD, k_pages, v_pages, tables, rows, sequences, scale, window, softcap, plan, out)
    return out


def _attend(
    q_RHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    tables: "AttentionTables",
    rows: slice,
    num_sequences: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    plan: Plan | None,
    out_RHD: Tensor,
) -> None:
    """One launch, for some neighbouring rows."""
    q_RHD, out = q_RHD[rows], out_RHD[rows]
    positions_R, sequences_R = tables.positions_R[rows], tables.sequences_R[rows]
    page_table_MP, ancestor_entries_TD = tables.page_table_MP, tables.ancestor_entries_TD
    num_rows, heads, head_dim = q_RHD.shape
    kv_heads, page = k_pages.shape[1], k_pages.shape[2]
    assert page % TILE == 0, "a tile lies in one page"
    assert heads % kv_heads == 0, "the heads divide evenly over the kv heads"
    group = heads // kv_heads
    block_group, block_dim = triton.next_power_of_2(group), triton.next_power_of_2(head_dim)
    pdl = overlaps(q_RHD.device)
    splits = num_splits(tables.max_positions)
    plan = plan or choose_plan(num_rows, num_sequences, kv_heads, block_group, block_dim, splits)
    if plan.fused:
        acc, tops, totals = out, None, None
    else:
        acc = q_RHD.new_empty((splits, num_rows, heads, head_dim), dtype=torch.float32)
        tops, totals = acc.new_empty((2, splits, num_rows, heads))
    shape = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": block_dim,
        "PAGE": page,
        "TILE": TILE,
        "SCALE": scale,
        "WINDOW": window or 0,
        "SOFTCAP": softcap or 0.0,
        "PDL": pdl,
        "launch_pdl": pdl,
        "num_warps": plan.warps,
        "enable_fp_fusion": False,
    }
    lookups = (page_table_MP, ancestor_entries_TD)
    sizes = (num_rows, page_table_MP.shape[1], ancestor_entries_TD.shape[1])
    arguments = (q_RHD, k_pages, v_pages, acc, tops, totals, positions_R, sequences_R, tables.bases_M)
    if plan.rows == 1:
        attend_row_kernel[(num_rows, kv_heads, 1 if plan.fused else splits)](
            *arguments,
            tables.starts_M,
            *lookups,
            *sizes,
            BLOCK_GROUP=block_group,
            BLOCK_M=max(16, plan.shared * block_group),
            SHARED=plan.shared,
            FUSED=plan.fused,
            PAIRS=plan.pairs,
            **shape,
        )
    else:
        _attend_kernel[(triton.cdiv(num_rows, plan.rows), kv_heads, 1 if plan.fused else splits)](
            *arguments,
            *lookups,
            *sizes,
            BLOCK_GROUP=block_group,
            ROWS=plan.rows,
            BLOCK_M=max(16, plan.rows * block_group),
            FUSED=plan.fused,
            STAGES=plan.stages,
            **shape,
        )
    if not plan.fused:
        # few rows: a warp per head, with room for all loads of a chunk to be underway at once
        many = num_rows > 16
        block_h = 8 if many else 1
        kernel = _merge_kernel[(num_rows, triton.cdiv(heads, block_h))](
            acc,
            tops,
            totals,
            positions_R,
            out,
            num_rows,
            heads,
            head_dim,
            block_dim,
            block_h,
            4 if many or splits <= 4 else 16,
            PDL=pdl,
            launch_pdl=pdl,
            num_warps=4 if many else 1,
            maxnreg=128 if many else 255,
            enable_fp_fusion=False,
        )
        if pdl and num_rows == 1:
            leave_room(kernel)
