"""Triton draw: keyed noise made where it is added, so that it never lies in memory. See `reference.py` for the generator.

A maximum has no order, so how the vocabulary is cut does not show. Legend: N rows, V vocabulary, C chunks of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 1024  # tokens of one program, whole blocks of 64


@triton.jit
def _uniform(word):
    """uint32 to float64 strictly between 0 and 1."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def _noise(seed, position, first_token, GROUPS: tl.constexpr):
    """float32 [GROUPS, 4]: Gumbel noise of the tokens from `first_token` on."""
    group = first_token // 4 + tl.arange(0, GROUPS)
    low = (position & 0xFFFFFFFF).to(tl.uint32)
    high = (position >> 32).to(tl.uint32)
    zero = tl.zeros((GROUPS,), tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, group.to(tl.uint32), zero + low, zero + high, zero)
    word = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (GROUPS, 4))
    block = group // 16
    w0, w1, w2, w3 = tl.philox(seed, (block // 2).to(tl.uint32), zero + low, zero + high, zero + 1)
    odd = block % 2 == 1
    first = -tl.log(_uniform(tl.where(odd, w2, w0))) * 0.015625
    winner = (tl.where(odd, w3, w1) >> 26).to(tl.int32)
    in_block = (group % 16 * 4)[:, None] + tl.arange(0, 4)[None, :]
    later = first[:, None] - tl.log(_uniform(word))
    clock = tl.where(in_block == winner[:, None], first[:, None], later)
    return (-tl.log(clock)).to(tl.float32)


@triton.jit
def _chunk_kernel(p_logits, p_seeds, p_positions, p_temperatures, p_noisy, p_best, p_token, V, CHUNK: tl.constexpr):
    """Grid (rows, chunks): the best sum of a chunk and its lowest token."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    logit = tl.load(p_logits + row * V + token, token < V, other=float("-inf"))
    score = tl.div_rn(logit, tl.zeros_like(logit) + tl.load(p_temperatures + row))
    if tl.load(p_noisy + row) != 0:
        score += _noise(tl.load(p_seeds + row), tl.load(p_positions + row), chunk * CHUNK, CHUNK // 4)
    score = tl.where(score == score, score, float("-inf"))
    best = tl.max(tl.max(score, 1), 0)
    lowest = tl.min(tl.min(tl.where((score == best) & (token < V), token, V), 1), 0)
    at = row * tl.num_programs(1) + chunk
    tl.store(p_best + at, best)
    tl.store(p_token + at, lowest)


@triton.jit
def _row_kernel(p_best, p_token, p_out, C, BLOCK: tl.constexpr):
    """One row per program: the best chunk, the first of equal ones."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    best = tl.load(p_best + row * C + c, c < C, other=float("-inf"))
    token = tl.load(p_token + row * C + c, c < C, other=2147483647)
    lowest = tl.min(tl.where(best == tl.max(best, 0), token, 2147483647), 0)
    tl.store(p_out + row, lowest.to(tl.int64))


def gumbel_argmax_triton(
    logits_NV: Tensor, seeds_N: Tensor, positions_N: Tensor, temperatures_N: Tensor, noisy_N: Tensor
) -> Tensor:
    """As `specdec.kernels.gumbel.gumbel_argmax`."""
    num_rows, vocab_size = logits_NV.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    best = logits_NV.new_empty((num_rows, num_chunks))
    token = logits_NV.new_empty((num_rows, num_chunks), dtype=torch.int32)
    out = logits_NV.new_empty(num_rows, dtype=torch.int64)
    _chunk_kernel[(num_rows, num_chunks)](
        logits_NV, seeds_N, positions_N, temperatures_N, noisy_N, best, token, vocab_size, CHUNK, enable_fp_fusion=False
    )
    _row_kernel[(num_rows,)](best, token, out, num_chunks, triton.next_power_of_2(num_chunks))
    return out
