"""Triton layout of tree rows: one member per program, a handful of integers each; see the package for the legend."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.launch import aligned

if TYPE_CHECKING:
    from specdec.kernels.tree_rows import Layout, Texts

_PAGES = 128  # copied at once


@triton.jit(do_not_specialize=["T", "L", "P_ALL", "P", "M", "spare_entry", "scratch_entry"])
def _rows_kernel(
    p_tokens,
    p_lengths,
    p_pages,
    p_texts,
    p_nodes,
    p_firsts,
    p_bases,
    p_starts,
    p_drafts,
    p_parents,
    p_counts,
    p_calls,
    p_of_rows,
    p_ancestors,
    p_entries,
    p_of_members,
    p_page_table,
    T,
    L,
    P_ALL,
    P,
    M,
    spare_entry,
    scratch_entry,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    PAGE: tl.constexpr,
    PAGES: tl.constexpr,
    DRAFTS: tl.constexpr,
):
    """Grid (members,). p_of_rows: int64 [8, T], in the order of `TreeRows`; p_of_members: [2, M]; T and M as they are
    stored, which is even."""
    m = tl.program_id(0).to(tl.int64)
    if m == 0:
        tl.store(p_calls, tl.load(p_calls) + 1)
    text = tl.load(p_texts + m)
    num_rows = tl.load(p_nodes + m)
    first = tl.load(p_firsts + m)
    length = tl.load(p_lengths + text)
    given = tl.load(p_bases + m)
    base = tl.where(given < 0, length - 1, given)
    start = tl.load(p_starts + m)
    tl.store(p_of_members + m, base)
    tl.store(p_of_members + M + m, tl.where(start < 0, base, start))
    p_own = p_pages + text * P_ALL
    for begin in range(0, P, PAGES):
        p = begin + tl.arange(0, PAGES)
        tl.store(p_page_table + m * P + p, tl.load(p_own + p, p < P, other=0), p < P)
    w = tl.arange(0, BLOCK)
    m_w = w < num_rows
    root = tl.load(p_tokens + text * L + length - 1).to(tl.int64)
    count = (num_rows * 0).to(tl.int32)
    parent = tl.zeros((BLOCK,), tl.int32)
    if DRAFTS:
        count = tl.load(p_counts + m).to(tl.int32)
        parent = tl.load(p_parents + m * N + w, w <= count, other=0).to(tl.int32)
    one = tl.full((BLOCK,), 1, tl.int64)
    path = one << w.to(tl.int64)
    above = parent
    for _ in tl.static_range(STEPS):
        path |= tl.gather(path, above, 0)
        above = tl.gather(above, above, 0)
    on_path = (path[:, None] >> w[None, :].to(tl.int64)) & 1
    depth = tl.sum(on_path, 1).to(tl.int32) - 1
    position = base + depth
    page = tl.load(p_own + position // PAGE, (w <= count) & (depth == w), other=0)
    entry = tl.where(depth == w, page * PAGE + position % PAGE, scratch_entry + first + w)
    # rows behind the last node repeat it
    node = tl.minimum(w, count)
    node_depth = tl.gather(depth, node, 0)
    node_path = tl.gather(path, node, 0)
    node_entry = tl.gather(entry, node, 0)
    token = one * root
    if DRAFTS:
        token = tl.load(p_drafts + m * N + node, m_w & (node > 0), other=0)
        token = tl.where(node > 0, token, root)
    row = first + w
    tl.store(p_of_rows + row, token, m_w)
    tl.store(p_of_rows + T + row, base + node_depth, m_w)
    tl.store(p_of_rows + 2 * T + row, one * m, m_w)
    tl.store(p_of_rows + 3 * T + row, one * text, m_w)
    tl.store(p_of_rows + 4 * T + row, tl.where(w <= count, entry, spare_entry), m_w)
    tl.store(p_of_rows + 5 * T + row, first + tl.gather(parent, node, 0), m_w)
    tl.store(p_of_rows + 6 * T + row, node_depth.to(tl.int64), m_w)
    tl.store(p_of_rows + 7 * T + row, node_path, m_w)
    # a path's node at each depth; from a row's own depth on the node itself
    d = w[None, :]
    at = row[:, None] * N
    m_rest = m_w[:, None] & (d >= node_depth[:, None]) & (d < N)
    tl.store(p_ancestors + at + d, (first + node)[:, None] + d * 0, m_rest)
    tl.store(p_entries + at + d, node_entry[:, None] + d * 0, m_rest)
    on_way = (node_path[:, None] >> d.to(tl.int64)) & 1
    m_way = m_w[:, None] & (on_way == 1) & (d != node[:, None])
    tl.store(p_ancestors + at + depth[None, :], (first + d).to(tl.int64) + at * 0, m_way)
    tl.store(p_entries + at + depth[None, :], entry[None, :] + at * 0, m_way)


def tree_rows_triton(
    texts: "Texts",
    layout: "Layout",
    drafts: tuple[Tensor, Tensor, Tensor] | None,
    calls_1: Tensor,
    *,
    num_nodes: int,
    num_pages: int,
    page_size: int,
    spare_entry: int,
    scratch_entry: int,
) -> tuple[Tensor, ...]:
    """As `specdec.kernels.tree_rows.tree_rows`; everything contiguous."""
    num_members, num_rows = len(layout.texts_M), len(layout.trees_T)
    device = texts.lengths_S.device
    of_rows = aligned(8, num_rows, device=device)
    ancestors, entries = aligned(2, num_rows, num_nodes, device=device)
    of_members, (page_table,) = aligned(2, num_members, device=device), aligned(1, num_members, num_pages, device=device)
    tokens_MN, parents_MN, counts_M = drafts if drafts is not None else (None, None, None)
    block = triton.next_power_of_2(num_nodes)
    _rows_kernel[(num_members,)](
        texts.tokens_SL,
        texts.lengths_S,
        texts.pages_SP,
        layout.texts_M,
        layout.nodes_M,
        layout.firsts_M,
        layout.bases_M,
        layout.starts_M,
        tokens_MN,
        parents_MN,
        counts_M,
        calls_1,
        of_rows[0],
        ancestors,
        entries,
        of_members[0],
        page_table,
        num_rows + num_rows % 2,
        texts.tokens_SL.shape[1],
        texts.pages_SP.shape[1],
        num_pages,
        num_members + num_members % 2,
        spare_entry,
        scratch_entry,
        num_nodes,
        block,
        (num_nodes - 1).bit_length(),
        page_size,
        _PAGES,
        drafts is not None,
        num_warps=1 if block <= 16 else 4,
    )
    return *of_rows, ancestors, entries, *of_members, page_table
