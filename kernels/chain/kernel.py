"""Triton ends of a chain round: one sequence per program, a handful of integers each; see the package for the legend."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from specdec.kernels.chain.data import ChainRows, Chains, Match, Told
from specdec.kernels.launch import overlaps

_TOLD = len(Told)
_TELL_BLOCK = 512


@triton.jit
def _rows_kernel(
    p_history,
    p_lengths,
    p_offsets,
    p_corpus,
    p_pages,
    p_mirrors,
    p_most,
    p_shortest,
    p_turns,
    p_ends,
    p_matched,
    p_tokens,
    p_positions,
    p_sequences,
    p_slots,
    p_bases,
    p_ancestors,
    p_draws,
    p_counts,
    p_told_matched,
    p_guesses,
    p_origins,
    L,
    C,
    P,
    spare_slot,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    LOOKUP: tl.constexpr,
):
    """Grid (sequences,)."""
    s = tl.program_id(0).to(tl.int64)
    if s == 0:
        tl.store(p_turns, tl.load(p_turns) + 1)
    length = tl.load(p_lengths + s)
    offset = tl.load(p_offsets + s)
    p_text = p_history + s * L
    w = tl.arange(0, BLOCK).to(tl.int64)
    m_w = w < WIDTH
    none = tl.zeros((BLOCK,), tl.int64)
    depth = none
    token = tl.load(p_text + length - 1 + none)
    count = length * 0
    matched = count
    origin = count
    guess = count - 1
    if LOOKUP:
        end = tl.load(p_ends + s)
        in_corpus = end + none < C
        own = tl.where(end < C, length, end - C)
        # where the text's end follows soon, it repeats itself with that period
        period = tl.maximum(length - own, 1)
        first = tl.minimum(own, length - 1)
        from_text = tl.load(p_text + first + w % period, m_w & (end + none >= C), other=-1)
        from_corpus = tl.load(p_corpus + tl.minimum(end + w, C - 1), m_w & in_corpus, other=-1)
        ahead = tl.where(in_corpus, from_corpus, from_text).to(tl.int64)
        guess = tl.sum(tl.where(w == 0, ahead, 0), 0)
        matched = tl.where(guess >= 0, tl.load(p_matched + s), 0)
        known = tl.min(tl.where((ahead < 0) | (w >= WIDTH - 1), w, BLOCK), 0)
        count = tl.where(matched >= tl.load(p_shortest), tl.minimum(known, tl.load(p_most + s)), 0)
        origin = tl.where(end < C, 2, tl.where(own < offset, 1, 0)).to(tl.int64)
        depth = tl.minimum(w, count)
        before = tl.maximum(depth - 1, 0)
        m_draft = m_w & (depth > 0)
        from_text = tl.load(p_text + first + before % period, m_draft & (end + none >= C), other=-1)
        from_corpus = tl.load(p_corpus + tl.minimum(end + before, C - 1), m_draft & in_corpus, other=-1)
        token = tl.where(depth > 0, tl.where(in_corpus, from_corpus, from_text), token)
    base = length - 1 - offset
    place = base + w
    slot = tl.load(p_pages + s * P + place // PAGE, m_w, other=0) * PAGE + place % PAGE
    writes = w <= tl.where(tl.load(p_mirrors + s) == 0, count, -1)
    row = s * WIDTH + w
    tl.store(p_tokens + row, token.to(tl.int64), m_w)
    tl.store(p_positions + row, base + depth, m_w)
    tl.store(p_sequences + row, none + s, m_w)
    tl.store(p_slots + row, tl.where(writes, slot, spare_slot), m_w)
    tl.store(p_draws + row, base + depth + 1, m_w)
    place = base + tl.minimum(w[None, :], depth[:, None])
    m_path = m_w[:, None] & m_w[None, :]
    slot = tl.load(p_pages + s * P + place // PAGE, m_path, other=0) * PAGE + place % PAGE
    tl.store(p_ancestors + row[:, None] * WIDTH + w[None, :], slot, m_path)
    tl.store(p_bases + s, base)
    tl.store(p_counts + s, count)
    tl.store(p_told_matched + s, matched)
    tl.store(p_guesses + s, guess)
    tl.store(p_origins + s, origin)


@triton.jit
def _commit_kernel(
    p_history,
    p_lengths,
    p_tokens,
    p_counts,
    p_matched,
    p_guesses,
    p_origins,
    p_chosen,
    p_tops,
    p_settled,
    p_turns,
    p_told,
    L,
    turns_kept,
    room,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TOLD: tl.constexpr,
    HAS_SETTLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (sequences,). The columns come in the order of `Told`."""
    s = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
    w = tl.arange(0, BLOCK).to(tl.int64)
    m_w = w < WIDTH
    row = s * WIDTH + w
    token = tl.load(p_tokens + row, m_w, other=-1)
    below = tl.load(p_tokens + row + 1, w + 1 < WIDTH, other=-1)
    chosen = tl.load(p_chosen + row, m_w, other=-1)
    count = tl.load(p_counts + s)
    matched = tl.load(p_matched + s)
    accepted = tl.min(tl.where((below == chosen) & (w < count), BLOCK, w), 0)
    length = tl.load(p_lengths + s)
    tl.store(p_history + s * L + length + w, chosen.to(tl.int32), m_w)
    tl.store(p_lengths + s, length + accepted + 1)
    top = tl.load(p_tops + row, m_w, other=0.0)
    sound = (top == top) & (tl.abs(top) < float("inf"))
    if HAS_SETTLED:
        sound = sound & (tl.load(p_settled + row, m_w, other=1) != 0)
    first = tl.sum(tl.where(w == 0, chosen, 0), 0)
    p_row = p_told + tl.load(p_turns) % turns_kept * room + s * (TOLD + 2 * WIDTH)
    tl.store(p_row, accepted)
    tl.store(p_row + 1, count)
    tl.store(p_row + 2, tl.min(sound.to(tl.int64), 0))
    tl.store(p_row + 3, matched)
    tl.store(p_row + 4, ((matched > 0) & (tl.load(p_guesses + s) == first)).to(tl.int64))
    tl.store(p_row + 5, tl.load(p_origins + s))
    tl.store(p_row + TOLD + w, token, m_w)
    tl.store(p_row + TOLD + WIDTH + w, chosen, m_w)


@triton.jit
def _tell_kernel(p_values, p_turns, p_ring, count, turns_kept, room, BLOCK: tl.constexpr):
    """Grid (blocks of the values,)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_at = at < count
    p_row = p_ring + tl.load(p_turns) % turns_kept * room
    tl.store(p_row + at, tl.load(p_values + at, m_at), m_at)


def chain_rows_triton(chains: Chains, match: Match | None, *, width: int, page_size: int, spare_slot: int) -> ChainRows:
    """As `specdec.kernels.chain.chain_rows`; everything contiguous."""
    num_sequences, room = chains.history_SL.shape
    of_rows = torch.empty((5, num_sequences * width), dtype=torch.int64, device=chains.lengths_S.device)
    of_sequences = of_rows.new_empty((5, num_sequences))
    ancestors = of_rows.new_empty((num_sequences * width, width))
    tokens, positions, sequences, slots, draws = of_rows.unbind()
    bases, counts, matched, guesses, origins = of_sequences.unbind()
    _rows_kernel[(num_sequences,)](
        chains.history_SL,
        chains.lengths_S,
        chains.offsets_S,
        chains.corpus_C,
        chains.page_table_SP,
        chains.mirrors_S,
        chains.most_drafts_S,
        chains.shortest_1,
        chains.turns_1,
        match.ends_S if match is not None else None,
        match.lengths_S if match is not None else None,
        tokens,
        positions,
        sequences,
        slots,
        bases,
        ancestors,
        draws,
        counts,
        matched,
        guesses,
        origins,
        room,
        len(chains.corpus_C),
        chains.page_table_SP.shape[1],
        spare_slot,
        width,
        triton.next_power_of_2(width),
        page_size,
        match is not None,
        num_warps=1,
    )
    return ChainRows(
        tokens_R=tokens,
        positions_R=positions,
        sequences_R=sequences,
        slots_R=slots,
        bases_S=bases,
        ancestor_slots_RD=ancestors,
        draws_R=draws,
        counts_S=counts,
        matched_S=matched,
        guesses_S=guesses,
        origins_S=origins,
    )


def commit_chains_triton(chains: Chains, rows: ChainRows, chosen_R: Tensor, tops_R: Tensor, settled_R: Tensor | None) -> None:
    """As `specdec.kernels.chain.commit_chains`; everything contiguous."""
    num_sequences, room = chains.history_SL.shape
    width, pdl = len(chosen_R) // num_sequences, overlaps(chosen_R.device)
    assert num_sequences * (_TOLD + 2 * width) <= chains.told_TX.shape[1], "the ring has room for a round"
    _commit_kernel[(num_sequences,)](
        chains.history_SL,
        chains.lengths_S,
        rows.tokens_R,
        rows.counts_S,
        rows.matched_S,
        rows.guesses_S,
        rows.origins_S,
        chosen_R,
        tops_R,
        settled_R,
        chains.turns_1,
        chains.told_TX,
        room,
        *chains.told_TX.shape,
        width,
        triton.next_power_of_2(width),
        _TOLD,
        settled_R is not None,
        PDL=pdl,
        launch_pdl=pdl,
        num_warps=1,
    )


def tell_triton(values: Tensor, ring_TX: Tensor, turns_1: Tensor) -> None:
    """As `specdec.kernels.chain.tell`."""
    count = values.numel()
    grid = (triton.cdiv(count, _TELL_BLOCK),)
    _tell_kernel[grid](values, turns_1, ring_TX, count, *ring_TX.shape, _TELL_BLOCK, num_warps=4)
