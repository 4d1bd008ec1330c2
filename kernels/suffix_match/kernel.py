"""Triton suffix match: every place compares what stands before it with the text's end.

Almost every place differs in its first token, so corpus and text are read about once. Legend: S texts, L tokens that a text
has room for, C tokens of the corpus.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 1024  # places of one program
_PLACE_BITS = 32  # a match is ranked by (length, place) in one int64


@triton.jit
def _chunk_kernel(
    p_history,
    p_lengths,
    p_corpus,
    p_best,
    L,
    C,
    longest,
    CORPUS_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    PLACE_BITS: tl.constexpr,
):
    """Grid (texts, chunks), the corpus's chunks first: the best match of a chunk; chunks behind the text's end have none."""
    text = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    length = tl.load(p_lengths + text).to(tl.int32)
    p_text = p_history + text * L
    in_corpus = chunk < CORPUS_CHUNKS
    first = tl.where(in_corpus, chunk, chunk - CORPUS_CHUNKS) * CHUNK
    stop = tl.where(in_corpus, C, length)
    place = first + tl.arange(0, CHUNK)
    alive = (place > 0) & (place < stop)
    matched = tl.zeros((CHUNK,), tl.int32)
    back = 1
    going = (first < stop) & (back <= longest) & (back <= length)
    while going:
        own = tl.load(p_text + length - back)
        compared = alive & (place >= back)
        if in_corpus:
            theirs = tl.load(p_corpus + place - back, compared, other=-1)
        else:
            theirs = tl.load(p_text + place - back, compared, other=-1)
        alive = compared & (theirs == own) & (theirs >= 0)
        matched += alive.to(tl.int32)
        back += 1
        going = (back <= longest) & (back <= length) & (tl.max(alive.to(tl.int32), 0) > 0)
    ranked = place + tl.where(in_corpus, 0, C)
    best = (matched.to(tl.int64) << PLACE_BITS) | ranked.to(tl.int64)
    tl.store(p_best + text * tl.num_programs(1) + chunk, tl.max(best, 0))


@triton.jit
def _text_kernel(p_best, p_lengths, p_ends, p_matched, num_chunks, C, BLOCK: tl.constexpr, PLACE_BITS: tl.constexpr):
    """One text per program: the best of its chunks."""
    text = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK)
    best = tl.max(tl.load(p_best + text * num_chunks + chunk, chunk < num_chunks, other=0), 0)
    matched = best >> PLACE_BITS
    end = best - (matched << PLACE_BITS)
    tl.store(p_ends + text, tl.where(matched > 0, end, tl.load(p_lengths + text) + C))
    tl.store(p_matched + text, matched)


def suffix_match_triton(history_SL: Tensor, lengths_S: Tensor, corpus_C: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """As `specdec.kernels.suffix_match.suffix_match`; history contiguous."""
    num_texts, room = history_SL.shape
    size = len(corpus_C)
    corpus_chunks = triton.cdiv(size, CHUNK)
    num_chunks = corpus_chunks + triton.cdiv(room, CHUNK)
    best = torch.empty((num_texts, num_chunks), dtype=torch.int64, device=history_SL.device)
    ends, matched = torch.empty_like(lengths_S), torch.empty_like(lengths_S)
    _chunk_kernel[(num_texts, num_chunks)](
        history_SL, lengths_S, corpus_C, best, room, size, longest, corpus_chunks, CHUNK, _PLACE_BITS
    )
    _text_kernel[(num_texts,)](
        best, lengths_S, ends, matched, num_chunks, size, triton.next_power_of_2(num_chunks), _PLACE_BITS, num_warps=1
    )
    return ends, matched
