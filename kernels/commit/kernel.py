"""Triton end of a round: one member per program, a handful of integers each; see the package for the legend."""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from specdec.kernels.commit.reference import SURE
from specdec.kernels.launch import overlaps
from specdec.kernels.tree_select.reference import OFFERED

if TYPE_CHECKING:
    from specdec.kernels.commit import Verified
    from specdec.kernels.tree_rows import Layout, Texts
    from specdec.kernels.tree_walk import Accepted

_TELL_BLOCK = 512
_COLUMNS = 5  # of `Told`


@triton.jit(do_not_specialize=["L", "V", "turns_kept", "room", "tokens_step", "kinds_step"])
def _commit_kernel(
    p_tokens,
    p_lengths,
    p_texts,
    p_nodes,
    p_firsts,
    p_num,
    p_rows,
    p_emitted,
    p_sound,
    p_candidates,
    p_kinds,
    p_parents,
    p_picks,
    p_drafted,
    p_offers,
    p_survivals,
    p_turns,
    p_told,
    p_counts,
    L,
    V,
    turns_kept,
    room,
    tokens_step,
    kinds_step,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    OFFERED: tl.constexpr,
    BLOCK_O: tl.constexpr,
    SURE: tl.constexpr,
    DRAFTED: tl.constexpr,
    COUNTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (members,). The columns come in the order of `Told`."""
    m = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
    d = tl.arange(0, BLOCK)
    m_d = d < N
    text = tl.load(p_texts + m)
    has_tree = tl.load(p_nodes + m) > 0
    sound = tl.load(p_sound + m) != 0
    num = tl.load(p_num + m)
    emitted = tl.load(p_emitted + m * N + d, m_d, other=-1)
    length = tl.load(p_lengths + text)
    moves = (has_tree & sound).to(tl.int32)
    kept = m_d & (d <= num) & (d * 0 + moves > 0)
    tl.store(p_tokens + text * L + length + d, emitted.to(tl.int32), kept)
    if COUNTED:
        tl.atomic_add(p_counts + text * V + emitted, tl.full((BLOCK,), 1, tl.int32), kept)
    if moves > 0:
        tl.store(p_lengths + text, length + num + 1)
    WIDTH: tl.constexpr = COLUMNS + (3 * N + OFFERED if DRAFTED else N)
    p_row = p_told + tl.load(p_turns) % turns_kept * room + m * WIDTH
    tl.store(p_row, tl.where(has_tree, num, 0))
    tl.store(p_row + 1, (sound | (has_tree == 0)).to(tl.int64))
    tl.store(p_row + COLUMNS + d, emitted, m_d)
    if DRAFTED:
        offer = tl.load(p_offers + m)
        has_offer = (offer >= 0) & has_tree
        kind = tl.load(p_kinds + m * kinds_step + offer, has_offer, other=-1)
        token = tl.load(p_candidates + m * tokens_step + offer, has_offer, other=-1)
        first = tl.sum(tl.where(d == 0, emitted, 0), 0)
        tl.store(p_row + 2, tl.load(p_drafted + m))
        tl.store(p_row + 3, kind)
        tl.store(p_row + 4, (has_offer & (token == first)).to(tl.int64))
        tl.store(p_row + COLUMNS + N + d, tl.load(p_rows + m * N + d, m_d, other=0) - tl.load(p_firsts + m), m_d)
        pick = tl.load(p_picks + m * N + d, m_d, other=-1)
        parent = tl.load(p_parents + m * N + d, m_d, other=0)
        node = tl.load(p_kinds + m * kinds_step + pick, pick >= 0, other=0) | (parent << 32)
        tl.store(p_row + COLUMNS + 2 * N + d, tl.where(pick >= 0, node, -1), m_d)
        o = tl.arange(0, BLOCK_O)
        survival = tl.load(p_survivals + m * OFFERED + o, o < OFFERED, other=0.0)
        tl.store(p_row + COLUMNS + 3 * N + o, (survival * SURE).to(tl.int64), o < OFFERED)
    else:
        tl.store(p_row + 2, num * 0)
        tl.store(p_row + 3, num * 0 - 1)
        tl.store(p_row + 4, num * 0)


@triton.jit(do_not_specialize=["count", "turns_kept", "room"])
def _tell_kernel(p_values, p_turns, p_ring, count, turns_kept, room, BLOCK: tl.constexpr):
    """Grid (blocks of the values,)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_at = at < count
    p_row = p_ring + tl.load(p_turns) % turns_kept * room
    tl.store(p_row + at, tl.load(p_values + at, m_at), m_at)


def commit_triton(
    texts: "Texts",
    layout: "Layout",
    accepted: "Accepted",
    verified: "Verified | None",
    told_HX: Tensor,
    turns_1: Tensor,
    counts_SV: Tensor | None = None,
) -> None:
    """As `specdec.kernels.commit.commit`; everything contiguous but the candidates' first dimension."""
    num_members, num_nodes = accepted.emitted_MD.shape
    pdl = overlaps(turns_1.device)
    drafts: tuple[Tensor | None, ...] = (None,) * 7
    steps = (0, 0)
    if verified is not None:
        candidates, trees = verified.candidates, verified.trees
        drafts = (
            candidates.tokens_MC,
            candidates.kinds_MC,
            trees.parents_MN,
            trees.picks_MN,
            trees.counts_M,
            trees.offers_M,
            trees.survivals_MO,
        )
        steps = (candidates.tokens_MC.stride(0), candidates.kinds_MC.stride(0))
    _commit_kernel[(num_members,)](
        texts.tokens_SL,
        texts.lengths_S,
        layout.texts_M,
        layout.nodes_M,
        layout.firsts_M,
        accepted.num_M,
        accepted.rows_MD,
        accepted.emitted_MD,
        accepted.sound_M,
        *drafts,
        turns_1,
        told_HX,
        counts_SV,
        texts.tokens_SL.shape[1],
        counts_SV.shape[1] if counts_SV is not None else 0,
        *told_HX.shape,
        *steps,
        num_nodes,
        triton.next_power_of_2(num_nodes),
        _COLUMNS,
        OFFERED,
        triton.next_power_of_2(OFFERED),
        SURE,
        verified is not None,
        counts_SV is not None,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=1,
    )


def tell_triton(values: Tensor, ring_HX: Tensor, turns_1: Tensor) -> None:
    """As `specdec.kernels.commit.tell`."""
    count = values.numel()
    grid = (triton.cdiv(count, _TELL_BLOCK),)
    _tell_kernel[grid](values, turns_1, ring_HX, count, *ring_HX.shape, _TELL_BLOCK, num_warps=4)
