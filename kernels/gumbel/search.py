"""The draw on the CPU: few of the vocabulary's noises are ever made.

A block of 64 tokens shares a first clock (see `reference.py`), which bounds what its tokens can reach. Blocks are visited in
the order of their bounds until no other can match what was found; the result is that of a full evaluation, bit for bit.

Shape suffixes: N rows, V vocabulary, B blocks of it, K visited blocks, W tokens of a block, C tokens of the visited blocks.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec.kernels.gumbel.reference import BLOCK, gumbel_of_blocks, largest_gumbel

if TYPE_CHECKING:
    from specdec.kernels.gumbel import Keys

_FIRST_BLOCKS = 12  # blocks whose noise is drawn at once; 12 settle nine rows in ten of SmolLM2's at T = 1
_GROWTH = 4


def gumbel_argmax_search(
    logits_NV: Tensor, keys: "Keys", owners_N: Tensor, positions_N: Tensor, *, domain: int = 0
) -> tuple[Tensor, Tensor]:
    """As `specdec.kernels.gumbel.gumbel_argmax`."""
    tops_N = logits_NV.amax(dim=-1)
    noisy_N = keys.noisy_S[owners_N]
    scores_NV = logits_NV / keys.temperatures_S[owners_N, None] if noisy_N.any() else logits_NV
    if tops_N.isnan().any():
        scores_NV = scores_NV.masked_fill(scores_NV.isnan(), -torch.inf)
    if not noisy_N.any():
        return scores_NV.argmax(dim=-1), tops_N
    tokens_N = torch.empty_like(owners_N)
    rows = noisy_N.nonzero()[:, 0]
    drawn = scores_NV if len(rows) == len(scores_NV) else scores_NV[rows]
    tokens_N[rows] = race(drawn, keys.seeds_S[owners_N[rows]], positions_N[rows] + 1, 1, domain)[1][:, 0]
    plain = (~noisy_N).nonzero()[:, 0]
    tokens_N[plain] = scores_NV[plain].argmax(dim=-1)
    return tokens_N, tops_N


def race(scores_NV: Tensor, seeds_N: Tensor, positions_N: Tensor, num: int, domain: int) -> tuple[Tensor, Tensor]:
    """The `num` tokens of the largest score + Gumbel noise, over the whole vocabulary; positions_N are the tokens' own.

    Returns:
        float32 [N, num] sums in descending order and int64 [N, num] tokens, equal sums by ascending token.
    """
    num_blocks = -(-scores_NV.shape[1] // BLOCK)
    missing = num_blocks * BLOCK - scores_NV.shape[1]
    if missing:
        scores_NV = F.pad(scores_NV, (0, missing), value=-torch.inf)
    scores_NBW = scores_NV.view(len(scores_NV), num_blocks, BLOCK)
    bounds_NB = scores_NBW.amax(dim=-1) + largest_gumbel(seeds_N, positions_N, num_blocks, domain)
    sums_Nn = scores_NV.new_empty(len(scores_NV), num)
    tokens_Nn = torch.empty_like(sums_Nn, dtype=torch.int64)
    rows = torch.arange(len(scores_NV), device=scores_NV.device)
    visited = max(_FIRST_BLOCKS, -(-num // BLOCK))
    while len(rows):
        visited = min(visited, num_blocks)
        bounds_NK, blocks_NK = torch.topk(bounds_NB[rows], visited, dim=-1)
        blocks_NK = blocks_NK.sort(dim=-1).values
        noise_NKW = gumbel_of_blocks(seeds_N[rows], positions_N[rows], blocks_NK, domain)
        sums_Nn[rows], tokens_Nn[rows] = _best(scores_NBW[rows[:, None], blocks_NK] + noise_NKW, blocks_NK, num)
        if visited == num_blocks:
            break
        rows = rows[~(bounds_NK[:, -1] < sums_Nn[rows, -1])]
        visited *= _GROWTH
    return sums_Nn, tokens_Nn


def _best(sums_NKW: Tensor, blocks_NK: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The largest sums of some blocks, which are given in ascending order, and their tokens."""
    lanes_W = torch.arange(BLOCK, device=blocks_NK.device)
    sums_NC, tokens_NC = sums_NKW.flatten(1), (blocks_NK[..., None] * BLOCK + lanes_W).flatten(1)
    if num == 1:
        best_N1, place_N1 = sums_NC.max(dim=-1, keepdim=True)  # the first of equal ones
        return best_N1, tokens_NC.gather(1, place_N1)
    sums_NC, order_NC = torch.sort(sums_NC, dim=-1, descending=True, stable=True)
    return sums_NC[:, :num], tokens_NC.gather(1, order_NC)[:, :num]
