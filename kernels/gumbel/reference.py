"""Noise as a pure function of (seed, position, token): no state, so it can be drawn anywhere, in any order, in any batch.

Generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
    key     = (seed & 0xffffffff, seed >> 32)
    counter = (index, position & 0xffffffff, position >> 32, 2 * domain + level)
A 32-bit word x becomes the uniform u = (x + 0.5) / 2**32, which lies strictly between 0 and 1 and is exact in float64;
-log(u) is then an exponential clock of rate 1.

Gumbel noise of a token is g = -log(E), E a clock of rate 1 of its own, and the token of the largest l + g is the one whose
clock, sped up by exp(l), rings first. The clocks of the 64 tokens of a *block* (token >> 6) are drawn from the first one on:
the first of 64 rings at a clock of rate 64, each of them is equally likely to be the first, and the others go on from there as
fresh clocks of rate 1 (memorylessness). So the clocks are independent, as if drawn one by one, but one draw bounds
64 tokens, and an argmax over a vocabulary looks at few of them:
    level 1, index = block >> 1, words 2 * (block & 1) and the next:  first = -log(u) / 64,  winner = word >> 26
    level 0, index = token >> 2, word token & 3:                      E = first if token & 63 == winner else first - log(u)
All of it in float64, rounded to float32 once, at the end. Every step is elementwise: no value depends on its neighbours.

Shape suffixes: N rows, C draws of a row, K blocks of a row, W the tokens of a block.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.gumbel import Keys

BLOCK = 64  # tokens that share a first clock

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def gumbel_argmax_reference(
    logits_NV: Tensor, keys: "Keys", owners_N: Tensor, positions_N: Tensor, *, domain: int = 0
) -> tuple[Tensor, Tensor]:
    """As `specdec.kernels.gumbel.gumbel_argmax`, with the noise of the whole vocabulary in memory."""
    num_blocks = -(-logits_NV.shape[1] // BLOCK)
    blocks_NK = torch.arange(num_blocks, device=logits_NV.device).expand(len(logits_NV), -1)
    noise_NKW = gumbel_of_blocks(keys.seeds_S[owners_N], positions_N + 1, blocks_NK, domain)
    scores_NV = logits_NV / keys.temperatures_S[owners_N, None]
    noisy_NV = scores_NV + noise_NKW.flatten(1)[:, : logits_NV.shape[1]]
    scores_NV = torch.where(keys.noisy_S[owners_N, None], noisy_NV, scores_NV)
    return scores_NV.masked_fill(scores_NV.isnan(), -torch.inf).argmax(dim=-1), logits_NV.amax(dim=-1)


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox4x32-10. Words are int64 tensors that hold unsigned 32-bit values; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, which keeps their 64 bits
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (right >> 32 & _MASK) ^ c1 ^ k0, (left >> 32 & _MASK) ^ c3 ^ k1
        c1, c3 = right & _MASK, left & _MASK
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3


def uniform(seeds_N: Tensor, positions_N: Tensor, draws_NC: Tensor, domain: int) -> Tensor:
    """Uniform draws, float64 [N, C], strictly between 0 and 1; `draws_NC` (int64) numbers the draws at one position."""
    return _uniform(_word(_draw(seeds_N, positions_N, draws_NC >> 2, domain, level=0), draws_NC & 3))


def gumbel(seeds_N: Tensor, positions_N: Tensor, tokens_NC: Tensor, domain: int = 0) -> Tensor:
    """Gumbel noise of some tokens, float32 [N, C].

    Args:
        seeds_N: int64, 0 or more.
        positions_N: int64, absolute position of the token that is drawn.
        tokens_NC: int64.
        domain: the stream; see `specdec.round.sample.noise.Domain`.
    """
    first_NC, winner_NC = _first_clocks(seeds_N, positions_N, tokens_NC // BLOCK, domain)
    words = _draw(seeds_N, positions_N, tokens_NC >> 2, domain, level=0)
    rest_NC = -_uniform(_word(words, tokens_NC & 3)).log()
    return _gumbel(torch.where(tokens_NC % BLOCK == winner_NC, first_NC, first_NC + rest_NC))


def gumbel_of_blocks(seeds_N: Tensor, positions_N: Tensor, blocks_NK: Tensor, domain: int = 0) -> Tensor:
    """Gumbel noise of all tokens of some blocks, float32 [N, K, BLOCK]; the same values as `gumbel`."""
    first_NK, winner_NK = _first_clocks(seeds_N, positions_N, blocks_NK, domain)
    per_block = torch.arange(BLOCK // 4, device=blocks_NK.device)
    index = (blocks_NK[..., None] * (BLOCK // 4) + per_block).flatten(1)
    words = torch.stack(_draw(seeds_N, positions_N, index, domain, level=0), dim=-1)
    rest_NKW = -_uniform(words).log().view(*blocks_NK.shape, BLOCK)
    is_first = torch.arange(BLOCK, device=blocks_NK.device) == winner_NK[..., None]
    return _gumbel(torch.where(is_first, first_NK[..., None], first_NK[..., None] + rest_NKW))


def largest_gumbel(seeds_N: Tensor, positions_N: Tensor, num_blocks: int, domain: int = 0) -> Tensor:
    """The largest Gumbel noise among the tokens of each block, float32 [N, num_blocks]."""
    pairs_N2 = torch.arange((num_blocks + 1) // 2, device=seeds_N.device).expand(len(seeds_N), -1)
    w0, _, w2, _ = _draw(seeds_N, positions_N, pairs_N2, domain, level=1)
    first = -_uniform(torch.stack((w0, w2), dim=-1).flatten(1)[:, :num_blocks]).log() / BLOCK
    return _gumbel(first)


def _first_clocks(seeds_N: Tensor, positions_N: Tensor, blocks_NC: Tensor, domain: int) -> tuple[Tensor, Tensor]:
    """When the first clock of each block rings (float64) and which of its tokens that is (int64)."""
    w0, w1, w2, w3 = _draw(seeds_N, positions_N, blocks_NC >> 1, domain, level=1)
    odd = (blocks_NC & 1).bool()
    return -_uniform(torch.where(odd, w2, w0)).log() / BLOCK, torch.where(odd, w3, w1) >> 26


def _draw(seeds_N: Tensor, positions_N: Tensor, index_NC: Tensor, domain: int, level: int) -> Words:
    seeds, positions = seeds_N[:, None], positions_N[:, None]
    stream = torch.full_like(positions, 2 * domain + level)
    return philox((index_NC, positions & _MASK, positions >> 32, stream), (seeds & _MASK, seeds >> 32 & _MASK))


def _word(words: Words, lane: Tensor) -> Tensor:
    return torch.where(lane < 2, torch.where(lane == 0, words[0], words[1]), torch.where(lane == 2, words[2], words[3]))


def _uniform(words: Tensor) -> Tensor:
    return (words.double() + 0.5) * 2.0**-32


def _gumbel(clocks: Tensor) -> Tensor:
    return (-clocks.log()).float()
