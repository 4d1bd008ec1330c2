"""Triton draw: keyed noise made where it is added, so that it never lies in memory. See `reference.py` for the generator.

A maximum has no order, so how the vocabulary is cut does not show. Few rows draw all noise, while the product before still
runs. Many rows draw one clock for each block of 64 tokens, which bounds what its tokens can reach, and look into those
blocks only that could hold the best one, the likeliest first. Legend: N rows, V vocabulary, C chunks of it, B blocks.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.kernels.launch import overlaps

if TYPE_CHECKING:
    from specdec.kernels.gumbel import Keys

CHUNK = 256  # tokens of one program, whole blocks of 64
_BLOCKS = 64  # of one program that bounds them
_FEW_ROWS = 8  # up to which drawing all noise is faster than the search


@triton.jit
def _uniform(word):
    """uint32 to float64 strictly between 0 and 1."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def _first_clock(seed, low, high, block, DOMAIN: tl.constexpr):
    """When the first clock of each block rings (float64), and which of its 64 tokens that is."""
    w0, w1, w2, w3 = tl.philox(seed, (block // 2).to(tl.uint32), low, high, tl.zeros_like(low) + (2 * DOMAIN + 1))
    odd = block % 2 == 1
    return -tl.log(_uniform(tl.where(odd, w2, w0))) * 0.015625, (tl.where(odd, w3, w1) >> 26).to(tl.int32)


@triton.jit
def _noise(seed, position, first_token, GROUPS: tl.constexpr, DOMAIN: tl.constexpr):
    """float32 [GROUPS, 4]: Gumbel noise of the tokens from `first_token` on."""
    group = first_token // 4 + tl.arange(0, GROUPS)
    zero = tl.zeros((GROUPS,), tl.uint32)
    low, high = zero + (position & 0xFFFFFFFF).to(tl.uint32), zero + (position >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, group.to(tl.uint32), low, high, zero + 2 * DOMAIN)
    word = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (GROUPS, 4))
    first, winner = _first_clock(seed, low, high, group // 16, DOMAIN)
    in_block = (group % 16 * 4)[:, None] + tl.arange(0, 4)[None, :]
    later = first[:, None] - tl.log(_uniform(word))
    clock = tl.where(in_block == winner[:, None], first[:, None], later)
    return (-tl.log(clock)).to(tl.float32)


@triton.jit
def _chunk_kernel(
    p_logits,
    p_owners,
    p_seeds,
    p_positions,
    p_temperatures,
    p_noisy,
    p_best,
    p_token,
    p_top,
    V,
    CHUNK: tl.constexpr,
    EARLY: tl.constexpr,
    DOMAIN: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows, chunks): the best sum of a chunk, its lowest token, and the largest logit. EARLY: noise before the wait."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        if not EARLY:
            gdc_wait()
    key = tl.load(p_owners + row)
    token = chunk * CHUNK + tl.arange(0, CHUNK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    noise = tl.zeros((CHUNK // 4, 4), tl.float32)
    temperature = tl.load(p_temperatures + key)
    if tl.load(p_noisy + key) != 0:
        noise = _noise(tl.load(p_seeds + key), tl.load(p_positions + row) + 1, chunk * CHUNK, CHUNK // 4, DOMAIN)
    if PDL and EARLY:
        gdc_wait()
    logit = tl.load(p_logits + row * V + token, token < V, other=float("-inf"))
    score = _score(logit, temperature, noise)
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


@triton.jit
def _score(logit, temperature, noise):
    """A token without a number never wins."""
    score = tl.div_rn(logit, tl.zeros_like(logit) + temperature) + noise
    return tl.where(score == score, score, float("-inf"))


@triton.jit
def _bound_kernel(
    p_logits,
    p_owners,
    p_seeds,
    p_positions,
    p_temperatures,
    p_noisy,
    p_bounds,
    p_top,
    V,
    B,
    BLOCKS: tl.constexpr,
    DOMAIN: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows, programs of BLOCKS blocks): what no token of a block exceeds, and the largest logit of them all.

    No clock of a block rings before its first one, and every step from clock and logit to score is monotonous as rounded.
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCKS
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    key = tl.load(p_owners + row)
    block = first + tl.arange(0, BLOCKS)
    noise = tl.zeros((BLOCKS,), tl.float32)
    if tl.load(p_noisy + key) != 0:
        position = tl.load(p_positions + row) + 1
        zero = tl.zeros((BLOCKS,), tl.uint32)
        low, high = zero + (position & 0xFFFFFFFF).to(tl.uint32), zero + (position >> 32).to(tl.uint32)
        clock, _ = _first_clock(tl.load(p_seeds + key), low, high, block, DOMAIN)
        noise = (-tl.log(clock)).to(tl.float32)
    token = block[:, None] * 64 + tl.arange(0, 64)[None, :]
    logit = tl.load(p_logits + row * V + token, token < V, other=float("-inf"))
    broken = tl.max(tl.max((logit != logit).to(tl.int32), 1), 0)
    top = tl.max(tl.where(logit == logit, logit, float("-inf")), 1)
    tl.store(p_bounds + row * B + block, _score(top, tl.load(p_temperatures + key), noise), block < B)
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(p_top + at, tl.where(broken > 0, float("nan"), tl.max(top, 0)))


@triton.jit
def _search_kernel(
    p_logits,
    p_owners,
    p_seeds,
    p_positions,
    p_temperatures,
    p_noisy,
    p_bounds,
    p_top,
    p_out,
    p_out_top,
    V,
    B,
    C,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DOMAIN: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row per program: blocks by descending bound, until no bound reaches the best score found."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    key = tl.load(p_owners + row)
    seed, position = tl.load(p_seeds + key), tl.load(p_positions + row) + 1
    temperature, noisy = tl.load(p_temperatures + key), tl.load(p_noisy + key)
    b = tl.arange(0, BLOCK_B)
    bounds = tl.load(p_bounds + row * B + b, b < B, other=float("-inf"))
    best = tl.full((), float("-inf"), tl.float32)
    best_token = tl.full((), 0, tl.int32)
    bound = tl.max(bounds, 0)
    while (bound > float("-inf")) & (bound >= best):
        block = tl.min(tl.where(bounds == bound, b, BLOCK_B), 0)
        token = block * 64 + tl.arange(0, 16)[:, None] * 4 + tl.arange(0, 4)[None, :]
        logit = tl.load(p_logits + row * V + token, token < V, other=float("-inf"))
        noise = tl.zeros((16, 4), tl.float32)
        if noisy != 0:
            noise = _noise(seed, position, block * 64, 16, DOMAIN)
        score = _score(logit, temperature, noise)
        here = tl.max(tl.max(score, 1), 0)
        lowest = tl.min(tl.min(tl.where(score == here, token, V), 1), 0)
        if (here > best) | ((here == best) & (lowest < best_token)):
            best = here
            best_token = lowest
        bounds = tl.where(b == block, float("-inf"), bounds)
        bound = tl.max(bounds, 0)
    tl.store(p_out + row, best_token.to(tl.int64))
    c = tl.arange(0, BLOCK_C)
    top = tl.load(p_top + row * C + c, c < C, other=float("-inf"))
    broken = tl.max((top != top).to(tl.int32), 0)
    tl.store(p_out_top + row, tl.where(broken > 0, float("nan"), tl.max(top, 0)))


def gumbel_argmax_triton(
    logits_NV: Tensor, keys: "Keys", owners_N: Tensor, positions_N: Tensor, *, domain: int = 0, early: bool = False
) -> tuple[Tensor, Tensor]:
    """As `specdec.kernels.gumbel.gumbel_argmax`."""
    num_rows, vocab_size = logits_NV.shape
    pdl = overlaps(logits_NV.device)
    arguments = (logits_NV, owners_N, keys.seeds_S, positions_N, keys.temperatures_S, keys.noisy_S)
    launch = {"PDL": pdl, "launch_pdl": pdl, "enable_fp_fusion": False}
    out, out_top = logits_NV.new_empty(num_rows, dtype=torch.int64), logits_NV.new_empty(num_rows)
    if num_rows > _FEW_ROWS:
        num_blocks = triton.cdiv(vocab_size, 64)
        programs = triton.cdiv(num_blocks, _BLOCKS)
        bounds, top = logits_NV.new_empty((num_rows, num_blocks)), logits_NV.new_empty((num_rows, programs))
        _bound_kernel[(num_rows, programs)](*arguments, bounds, top, vocab_size, num_blocks, _BLOCKS, domain, **launch)
        _search_kernel[(num_rows,)](
            *arguments,
            bounds,
            top,
            out,
            out_top,
            vocab_size,
            num_blocks,
            programs,
            triton.next_power_of_2(num_blocks),
            triton.next_power_of_2(programs),
            domain,
            **launch,
        )
        return out, out_top
    num_chunks = triton.cdiv(vocab_size, CHUNK)
    best = logits_NV.new_empty((num_rows, num_chunks))
    token, top = logits_NV.new_empty((num_rows, num_chunks), dtype=torch.int32), torch.empty_like(best)
    _chunk_kernel[(num_rows, num_chunks)](*arguments, best, token, top, vocab_size, CHUNK, early, domain, **launch)
    block = triton.next_power_of_2(num_chunks)
    _row_kernel[(num_rows,)](best, token, top, out, out_top, num_chunks, block, PDL=pdl, launch_pdl=pdl)
    return out, out_top


@triton.jit
def _sum_kernel(
    p_logits,
    p_owners,
    p_seeds,
    p_positions,
    p_temperatures,
    p_noisy,
    p_out,
    V,
    CHUNK: tl.constexpr,
    DOMAIN: tl.constexpr,
):
    """Grid (rows, chunks): logit / T + noise of every token."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * CHUNK
    key = tl.load(p_owners + row)
    token = first + tl.arange(0, CHUNK // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    noise = tl.zeros((CHUNK // 4, 4), tl.float32)
    if tl.load(p_noisy + key) != 0:
        noise = _noise(tl.load(p_seeds + key), tl.load(p_positions + row) + 1, first, CHUNK // 4, DOMAIN)
    logit = tl.load(p_logits + row * V + token, token < V, other=float("-inf"))
    tl.store(p_out + row * V + token, _score(logit, tl.load(p_temperatures + key), noise), token < V)


def gumbel_topk_triton(
    logits_NV: Tensor, keys: "Keys", owners_N: Tensor, positions_N: Tensor, num: int, *, domain: int = 0
) -> tuple[Tensor, Tensor]:
    """As `specdec.kernels.gumbel.gumbel_topk`."""
    num_rows, vocab_size = logits_NV.shape
    sums_NV = torch.empty_like(logits_NV)
    arguments = (logits_NV, owners_N, keys.seeds_S, positions_N, keys.temperatures_S, keys.noisy_S)
    _sum_kernel[(num_rows, triton.cdiv(vocab_size, CHUNK))](
        *arguments, sums_NV, vocab_size, CHUNK, domain, enable_fp_fusion=False
    )
    return torch.topk(sums_NV, num, dim=-1)
