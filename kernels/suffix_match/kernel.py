"""Triton suffix match: every place compares what stands before it with the text's end.

Almost every place differs in its first token, so everything is read about once. Legend in the package.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.launch import aligned
from specdec.kernels.suffix_match.reference import NUM_PLACES

if TYPE_CHECKING:
    from specdec.kernels.suffix_match import Library

CHUNK = 1024  # places of one program
_LONGEST, _BRANCH = 16, 4  # as in the package
_PLACE_BITS = 32  # a match is ranked by (length, place) in one int64


@triton.jit(do_not_specialize=["L", "B", "C"])
def _chunk_kernel(
    p_which,
    p_texts,
    p_lengths,
    p_references,
    p_reference_lengths,
    p_corpus,
    p_best,
    L,
    B,
    C,
    CORPUS_CHUNKS: tl.constexpr,
    REFERENCE_CHUNKS: tl.constexpr,
    OWN: tl.constexpr,
    CHUNK: tl.constexpr,
    LONGEST: tl.constexpr,
    K: tl.constexpr,
    PLACE_BITS: tl.constexpr,
):
    """Grid (texts, chunks), the corpus's chunks first, then the reference's: the best K places of a chunk; places count through
    corpus, reference and text."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    text = tl.load(p_which + row)
    length = tl.load(p_lengths + text).to(tl.int32)
    p_text = p_texts + text * L
    at_out = (row * tl.num_programs(1) + chunk) * K
    in_corpus = chunk < CORPUS_CHUNKS
    in_text = chunk >= CORPUS_CHUNKS + REFERENCE_CHUNKS
    stop = length if OWN else length * 0
    if in_corpus:
        first = chunk * CHUNK
        stop = C + length * 0
    else:
        first = (chunk - CORPUS_CHUNKS) * CHUNK
        if in_text:
            first = (chunk - CORPUS_CHUNKS - REFERENCE_CHUNKS) * CHUNK
        else:
            stop = tl.load(p_reference_lengths + text).to(tl.int32)
    p_source = p_text
    if in_corpus:
        p_source = p_corpus
    if (in_corpus == 0) & (in_text == 0):
        p_source = p_references + text * B
    ranked_from = tl.where(in_corpus, 0, tl.where(in_text, C + B, C))
    place = first + tl.arange(0, CHUNK)
    alive = (place > 0) & (place < stop)
    matched = tl.zeros((CHUNK,), tl.int32)
    back = 1
    going = (first < stop) & (back <= length)
    while going:
        own = tl.load(p_text + length - back)
        compared = alive & (place >= back)
        theirs = tl.load(p_source + place - back, compared, other=-1)
        alive = compared & (theirs == own) & (theirs >= 0)
        matched += alive.to(tl.int32)
        back += 1
        going = (back <= LONGEST) & (back <= length) & (tl.max(alive.to(tl.int32), 0) > 0)
    follows = tl.load(p_source + place, matched > 0, other=-1)
    key = (matched.to(tl.int64) << PLACE_BITS) | (place + ranked_from).to(tl.int64)
    key = tl.where((matched > 0) & (follows >= 0), key, 0)
    if tl.max(key, 0) == 0:
        k = tl.arange(0, K)
        tl.store(p_best + at_out + k, tl.zeros((K,), tl.int64))
    else:
        for k in tl.static_range(K):
            best = tl.max(key, 0)
            tl.store(p_best + at_out + k, best)
            key = tl.where(key == best, 0, key)


@triton.jit(do_not_specialize=["num_found", "num_candidates", "W", "L", "B", "C"])
def _text_kernel(
    p_which,
    p_texts,
    p_lengths,
    p_references,
    p_reference_lengths,
    p_corpus,
    p_best,
    p_labels,
    p_shifts,
    p_tokens,
    p_parents,
    p_kinds,
    num_found,
    num_candidates,
    W,
    L,
    B,
    C,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BRANCH: tl.constexpr,
    LONGEST: tl.constexpr,
    PLACE_BITS: tl.constexpr,
):
    """One text per program: the best of its chunks' places, followed as a trie."""
    row = tl.program_id(0).to(tl.int64)
    text = tl.load(p_which + row)
    length = tl.load(p_lengths + text)
    found = tl.arange(0, BLOCK)
    key = tl.load(p_best + row * num_found + found, found < num_found, other=0)
    k = tl.arange(0, K)
    ranked = tl.zeros((K,), tl.int64)
    for rank in tl.static_range(K):
        best = tl.max(key, 0)
        ranked = tl.where(k == rank, best, ranked)
        key = tl.where(key == best, 0, key)
    matched = (ranked >> PLACE_BITS)[:, None]
    place = ranked[:, None] - (matched << PLACE_BITS)
    in_corpus = place < C
    in_text = place >= C + B
    origin = tl.where(matched > 0, tl.where(in_corpus, 2, tl.where(in_text, 0, 1)), 0)
    w = tl.arange(0, BLOCK_W)[None, :]
    wanted = (w < W) & (matched > 0)
    # where the text's end follows soon, it repeats itself with that period
    own = tl.where(in_text, place - C - B, 0)
    period = tl.maximum(length - own, 1)
    ahead = tl.load(p_texts + text * L + own + w % period, wanted & in_text, other=-1)
    at = place + w
    ahead = tl.where(in_corpus, tl.load(p_corpus + at, wanted & in_corpus & (at < C), other=-1), ahead)
    at = place - C + w
    in_reference = (in_corpus == 0) & (in_text == 0)
    m_reference = wanted & in_reference & (at < tl.load(p_reference_lengths + text))
    ahead = tl.where(in_reference, tl.load(p_references + text * B + at, m_reference, other=-1), ahead)
    ahead = tl.where(tl.cumsum((ahead < 0).to(tl.int32), 1) > 0, -1, ahead)
    known = ahead >= 0
    zero = tl.zeros((K, BLOCK_W), tl.int32)
    agree = zero
    other = zero
    repeats = zero
    first = zero
    led = zero
    lead = zero + K
    column = k[:, None]
    for rank in tl.static_range(K):
        theirs = tl.sum(tl.where(column == rank, ahead, 0), 0)[None, :]
        alive = tl.max(tl.where(column == rank, matched, 0)) > 0
        same = known & (ahead == theirs)
        # still on one path before a token: nothing before it differs
        parted = 1 - same.to(tl.int32)
        before = (tl.cumsum(parted, 1) - parted == 0) & (matched > 0) & alive
        agree += (before & same).to(tl.int32)
        other += (before & (same == 0) & (theirs >= 0)).to(tl.int32)
        repeats = tl.where(before & same & (column > rank), 1, repeats)
        leads = before & (theirs >= 0) & (led == 0)
        first = tl.where(leads, same.to(tl.int32), first)
        led = tl.where(leads, 1, led)
        lead = tl.where(before & (lead == K), rank, lead)
    evidence = tl.minimum(matched + w, LONGEST)
    at = (origin * 2 + (1 - first)) * (LONGEST + 1) + evidence
    at = (at * 3 + tl.minimum(tl.maximum(agree - 1, 0), 2)) * 3 + tl.minimum(other, 2)
    inside = (w < W) & ((column == 0) | (w < BRANCH))
    kind = tl.load(p_labels + at, inside, other=0) + tl.load(p_shifts + text)
    above = tl.where(lead == 0, w - 1, W + (lead - 1) * BRANCH + w - 1)
    at_out = row * num_candidates + tl.where(column == 0, w, W + (column - 1) * BRANCH + w)
    token = tl.where(known & (repeats == 0), ahead, -1)
    tl.store(p_tokens + at_out, token.to(tl.int64), inside)
    tl.store(p_parents + at_out, tl.where((w == 0) | (lead == K), -1, above).to(tl.int64), inside)
    tl.store(p_kinds + at_out, kind, inside)


def suffix_candidates_triton(
    library: "Library", texts_M: Tensor, labels: Tensor, shifts_S: Tensor, *, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `specdec.kernels.suffix_match.suffix_candidates`; texts and references contiguous in their last dimension."""
    texts_SL, references_SB, corpus_C = library.texts_SL, library.references_SB, library.corpus_C
    reach, reference_room, size = texts_SL.shape[1], references_SB.shape[1], len(corpus_C)
    corpus_chunks, reference_chunks = triton.cdiv(size, CHUNK), triton.cdiv(reference_room, CHUNK)
    num_chunks = max(corpus_chunks + reference_chunks + triton.cdiv(reach, CHUNK) * library.own, 1)
    branch = min(width, _BRANCH)
    num_texts, num_candidates = len(texts_M), width + (NUM_PLACES - 1) * branch
    best = torch.empty((num_texts, num_chunks * NUM_PLACES), dtype=torch.int64, device=texts_M.device)
    tokens, parents, kinds = aligned(3, num_texts, num_candidates, device=texts_M.device)
    sources = (
        texts_M,
        texts_SL,
        library.lengths_S,
        references_SB,
        library.reference_lengths_S,
        corpus_C,
        best,
    )
    rooms = (texts_SL.stride(0), references_SB.stride(0), size)
    _chunk_kernel[(num_texts, num_chunks)](
        *sources, *rooms, corpus_chunks, reference_chunks, library.own, CHUNK, _LONGEST, NUM_PLACES, _PLACE_BITS
    )
    _text_kernel[(num_texts,)](
        *sources,
        labels,
        shifts_S,
        tokens,
        parents,
        kinds,
        num_chunks * NUM_PLACES,
        num_candidates,
        width,
        *rooms,
        NUM_PLACES,
        triton.next_power_of_2(num_chunks * NUM_PLACES),
        triton.next_power_of_2(width),
        branch,
        _LONGEST,
        _PLACE_BITS,
        num_warps=2,
    )
    return tokens, parents, kinds
