"""Triton attention of few rows: each program holds the query heads of one kv head of one row, or of some neighbouring ones that
all see the same keys."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.tree_attention.splits import merge_step, scores, softmax_step, split_of, split_start

CHANGING = ["R", "P", "D"]  # from round to round; a variant for each of their divisors would take a second to compile


@triton.jit(do_not_specialize=CHANGING)
def attend_row_kernel(
    p_q,
    p_k,
    p_v,
    p_out,
    p_tops,
    p_totals,
    p_positions,
    p_sequences,
    p_bases,
    p_starts,
    p_pages,
    p_ancestors,
    R,
    P,
    D,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SHARED: tl.constexpr,
    FUSED: tl.constexpr,
    PAIRS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows, kv heads, splits), or (rows, kv heads) if FUSED: as `_attend_kernel`, for few rows.

    SHARED: a split that all rows of a sequence see whole is read once for so many of them, which lie in one block of as many,
    by the program of the first; the others leave.

    Keys below the sequence's start are older than this round, so those of the first tile (of the first two: PAIRS, for the
    latency of very few rows) are on their way before the round's q, K and V are there; so are the tables, see
    `tree_attention_triton`.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    if PDL:
        gdc_launch_dependents()
    last = tl.load(p_positions + row).to(tl.int32)
    sequence = tl.load(p_sequences + row)
    if split_start(split) > last:
        return
    base = tl.load(p_bases + sequence).to(tl.int32)
    m = tl.arange(0, BLOCK_M)
    own = row
    m_m = m < GROUP
    if SHARED > 1:
        own = row // SHARED * SHARED + m // BLOCK_GROUP
        m_m = (m // BLOCK_GROUP < SHARED) & (own < R) & (m % BLOCK_GROUP < GROUP)
        m_m = m_m & (tl.load(p_sequences + own, m_m, other=-1) == sequence)
        positions = tl.load(p_positions + own, m_m, other=last).to(tl.int32)
        whole = split_start(split + 1) <= tl.minimum(base, tl.min(positions, 0) + 1)
        if WINDOW > 0:
            whole = whole & (split_start(split) > tl.max(positions, 0) - WINDOW)
        if whole & (tl.min(tl.where(m_m, own, row), 0) < row):
            return
        m_m = m_m & tl.where(whole, own >= 0, own == row)
    first_new = tl.load(p_starts + sequence).to(tl.int32)
    low = split_start(split)
    end = last + 1
    if not FUSED:
        end = tl.minimum(split_start(split + 1), end)
    if WINDOW > 0:
        low = tl.maximum(low, (last - WINDOW + 1) // TILE * TILE)
    old_end = tl.minimum(tl.minimum(base, first_new), end)
    d = tl.arange(0, BLOCK_DIM)[None, :]
    m_d = d < HEAD_DIM
    p_row_pages = p_pages + sequence * P
    p_row_entries = p_ancestors + row * D - base
    p_k += kv_head * (PAGE * HEAD_DIM) + d
    p_v += kv_head * (PAGE * HEAD_DIM) + d
    lane = tl.arange(0, TILE)[:, None]
    at = _tile_keys(p_row_pages, p_row_entries, low, base, end, KV_HEADS, HEAD_DIM, PAGE, TILE)
    m_old = _in_sight(low + lane, old_end, last, WINDOW) & m_d
    b_k = tl.load(p_k + at, m_old, other=0.0)
    b_v = tl.load(p_v + at, m_old, other=0.0)
    if PAIRS:
        at_2 = _tile_keys(p_row_pages, p_row_entries, low + TILE, base, end, KV_HEADS, HEAD_DIM, PAGE, TILE)
        m_old = _in_sight(low + TILE + lane, old_end, last, WINDOW) & m_d
        b_k_2 = tl.load(p_k + at_2, m_old, other=0.0)
        b_v_2 = tl.load(p_v + at_2, m_old, other=0.0)
    if PDL:
        gdc_wait()
    at_head = own * (KV_HEADS * GROUP) + kv_head * GROUP + m % BLOCK_GROUP
    m_q = m_m[:, None] & m_d
    b_q = tl.load(p_q + at_head[:, None] * HEAD_DIM + d, m_q, other=0.0)
    # what this round wrote
    if old_end < tl.minimum(end, low + TILE):
        m_new = (low + lane >= old_end) & _in_sight(low + lane, end, last, WINDOW) & m_d
        b_k = tl.load(p_k + at, m_new, other=b_k)
        b_v = tl.load(p_v + at, m_new, other=b_v)
    if PAIRS:
        key_2 = low + TILE + lane
        if old_end < tl.minimum(end, low + 2 * TILE):
            m_new = (key_2 >= old_end) & _in_sight(key_2, end, last, WINDOW) & m_d
            b_k_2 = tl.load(p_k + at_2, m_new, other=b_k_2)
            b_v_2 = tl.load(p_v + at_2, m_new, other=b_v_2)

    ones = tl.full((TILE, 16), 1.0, p_v.dtype.element_ty)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    totals = tl.zeros((BLOCK_M, 16), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
    all_top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    all_total = tl.zeros((BLOCK_M,), tl.float32)
    all_acc = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
    STEP: tl.constexpr = 2 * TILE if PAIRS else TILE
    for start in range(low, end, STEP):
        key = start + tl.arange(0, TILE)
        s = scores(b_q, b_k, SCALE, SOFTCAP)
        if PAIRS:
            # both products, then both softmax steps, so that neither waits for the other's weights
            s_2 = scores(b_q, b_k_2, SCALE, SOFTCAP)
            weights, factor, top = softmax_step(_seen(s, key, end, last, WINDOW), top)
            weights_2, factor_2, top = softmax_step(_seen(s_2, key + TILE, end, last, WINDOW), top)
            weights, weights_2 = weights.to(b_v.dtype), weights_2.to(b_v.dtype)
            totals = tl.dot(weights, ones, totals * factor[:, None])
            acc = tl.dot(weights, b_v, acc * factor[:, None])
            totals = tl.dot(weights_2, ones, totals * factor_2[:, None])
            acc = tl.dot(weights_2, b_v_2, acc * factor_2[:, None])
            if start + STEP < end:
                at = _tile_keys(p_row_pages, p_row_entries, start + STEP, base, end, KV_HEADS, HEAD_DIM, PAGE, TILE)
                m_next = (start + STEP + lane < end) & m_d
                b_k = tl.load(p_k + at, m_next, other=0.0)
                b_v = tl.load(p_v + at, m_next, other=0.0)
                at = _tile_keys(p_row_pages, p_row_entries, start + STEP + TILE, base, end, KV_HEADS, HEAD_DIM, PAGE, TILE)
                m_next = (start + STEP + TILE + lane < end) & m_d
                b_k_2 = tl.load(p_k + at, m_next, other=0.0)
                b_v_2 = tl.load(p_v + at, m_next, other=0.0)
        else:
            at = _tile_keys(p_row_pages, p_row_entries, start + TILE, base, end, KV_HEADS, HEAD_DIM, PAGE, TILE)
            m_next = (start + TILE + lane < end) & m_d
            b_k_next = tl.load(p_k + at, m_next, other=0.0)
            b_v_next = tl.load(p_v + at, m_next, other=0.0)
            weights, factor, top = softmax_step(_seen(s, key, end, last, WINDOW), top)
            weights = weights.to(b_v.dtype)
            totals = tl.dot(weights, ones, totals * factor[:, None])
            acc = tl.dot(weights, b_v, acc * factor[:, None])
            b_k = b_k_next
            b_v = b_v_next
            if FUSED:
                done = split_of(start + TILE) != split_of(start)
                if done | (start + TILE >= end):
                    all_top, all_total, all_acc = merge_step(all_top, all_total, all_acc, top, tl.max(totals, 1), acc)
                    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
                    totals = tl.zeros((BLOCK_M, 16), tl.float32)
                    acc = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
    if FUSED:
        out = (all_acc / all_total[:, None]).to(p_out.dtype.element_ty)
        tl.store(p_out + at_head[:, None] * HEAD_DIM + d, out, m_q)
    else:
        at_split = split.to(tl.int64) * R * (KV_HEADS * GROUP) + at_head
        tl.store(p_tops + at_split, top, m_m)
        # every column of the product with ones holds the sum
        column = tl.arange(0, 16)[None, :]
        tl.store(p_totals + at_split[:, None] + column * 0, totals, m_m[:, None] & (column == 0))
        tl.store(p_out + at_split[:, None] * HEAD_DIM + d, acc, m_q)


@triton.jit
def _seen(s, key, end, last, WINDOW: tl.constexpr):
    """Scores [heads, keys] of the keys below `end` that the row at position `last` sees, -inf of the others."""
    return tl.where(_in_sight(key, end, last, WINDOW)[None, :], s, float("-inf"))


@triton.jit
def _in_sight(key, end, last, WINDOW: tl.constexpr):
    """Which keys below `end` the row at position `last` sees. Others are not even loaded: they may be NaN."""
    keep = key < end
    if WINDOW > 0:
        keep = keep & (key > last - WINDOW)
    return keep


@triton.jit
def _tile_keys(
    p_row_pages,
    p_row_entries,
    start,
    base,
    end,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
):
    """[TILE, 1]: where a row's keys at positions from `start` on, below `end`, lie in the pages of the first kv head.

    Below the base in the sequence's page, from there on at the ancestor's entry (`p_row_entries`, by position).
    """
    key = start + tl.arange(0, TILE)[:, None]
    page = tl.load(p_row_pages + start // PAGE, start < end, other=0)
    in_tree = (key >= base) & (key < end)
    entry = tl.load(p_row_entries + key, in_tree, other=0)
    entry = tl.where(in_tree, entry, page * PAGE + key % PAGE)
    return (entry // PAGE * (KV_HEADS * PAGE) + entry % PAGE) * HEAD_DIM
