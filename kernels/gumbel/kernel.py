"""Triton draw: keyed noise made where it is added, so that it never lies in memory. See `reference.py` for the generator.

A maximum has no order, so how the vocabulary is cut does not show. Legend: N rows, V vocabulary, C chunks of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.linear.kernel import overlaps

CHUNK = 256  # tokens of one program, whole blocks of 64


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
def _chunk_kernel(
    p_logits,
    p_seeds,
    p_positions,
    p_temperatures,
    p_noisy,
    p_best,
    p_token,
    p_top,
    V,
    rows_per_key,
    CHUNK: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows, chunks): the best sum of a chunk, its lowest token, and the largest logit. EARLY: noise before the wait."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        if not EARLY:
            gdc_wait()
    key = row // rows_per_key
    token = chunk * CHUNK + tl.arange(0, CHUNK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    noise = tl.zeros((CHUNK // 4, 4), tl.float32)
    temperature = tl.load(p_temperatures + key)
    if tl.load(p_noisy + key) != 0:
        noise = _noise(tl.load(p_seeds + key), tl.load(p_positions + row), chunk * CHUNK, CHUNK // 4)
    if PDL and EARLY:
        gdc_wait()
    logit = tl.load(p_logits + row * V + token, token < V, other=float("-inf"))
    score = tl.div_rn(logit, tl.zeros_like(logit) + temperature) + noise
    score = tl.where(score == score, score, float("-inf"))
    best = tl.max(tl.max(score, 1), 0)
    lowest = tl.min(tl.min(tl.where((score == best) & (token < V), token, V), 1), 0)
    at = row * tl.num_programs(1) + chunk
    tl.store(p_best + at, best)
    tl.store(p_token + at, lowest)
    broken = tl.max(tl.max((logit != logit).to(tl.int32), 1), 0)
    tl.store(p_top + at, tl.where(broken > 0, float("nan"), tl.max(tl.max(logit, 1), 0)))


@triton.jit
def _row_kernel(p_best, p_token, p_top, p_out, p_out_top, C, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One row per program: the best chunk, the first of equal ones, and the largest logit."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    best = tl.load(p_best + row * C + c, c < C, other=float("-inf"))
    token = tl.load(p_token + row * C + c, c < C, other=2147483647)
    top = tl.load(p_top + row * C + c, c < C, other=float("-inf"))
    lowest = tl.min(tl.where(best == tl.max(best, 0), token, 2147483647), 0)
    tl.store(p_out + row, lowest.to(tl.int64))
    broken = tl.max((top != top).to(tl.int32), 0)
    tl.store(p_out_top + row, tl.where(broken > 0, float("nan"), tl.max(top, 0)))


def gumbel_argmax_triton(
    logits_NV: Tensor,
    seeds_K: Tensor,
    positions_N: Tensor,
    temperatures_K: Tensor,
    noisy_K: Tensor,
    *,
    early: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `specdec.kernels.gumbel.gumbel_argmax`."""
    num_rows, vocab_size = logits_NV.shape
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    best = logits_NV.new_empty((num_rows, num_chunks))
    token, top = logits_NV.new_empty((num_rows, num_chunks), dtype=torch.int32), torch.empty_like(best)
    out, out_top = logits_NV.new_empty(num_rows, dtype=torch.int64), logits_NV.new_empty(num_rows)
    pdl = overlaps(logits_NV.device)
    _chunk_kernel[(num_rows, num_chunks)](
        logits_NV,
        seeds_K,
        positions_N,
        temperatures_K,
        noisy_K,
        best,
        token,
        top,
        vocab_size,
        num_rows // len(seeds_K),
        CHUNK,
        early,
        PDL=pdl,
        launch_pdl=pdl,
        enable_fp_fusion=False,
    )
    block = triton.next_power_of_2(num_chunks)
    _row_kernel[(num_rows,)](best, token, top, out, out_top, num_chunks, block, PDL=pdl, launch_pdl=pdl)
    return out, out_top
