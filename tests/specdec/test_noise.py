"""The noise is Philox's, is Gumbel, and is the same however it is asked for."""

import pytest
import torch
from scipy import stats

from specdec.round.sample.noise import BLOCK, Domain, gumbel, gumbel_of_blocks, in_round, largest_gumbel, philox, uniform

ONES = 0xFFFFFFFF
# the generator's published known answers: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = torch.tensor([0, 7, 2**63 - 1, 2**40 + 3])
POSITIONS = torch.tensor([0, 5, 131071, 9])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_numbers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    words = philox((c0, c1, c2, c3), (torch.tensor([key[0]]), torch.tensor([key[1]])))
    assert tuple(int(word) for word in words) == expected


def test_noise_does_not_depend_on_what_else_is_drawn() -> None:
    tokens = torch.arange(1000).expand(4, -1)
    together = gumbel(SEEDS, POSITIONS, tokens)
    for row in range(4):
        for start, stop in ((0, 1), (3, 10), (63, 66), (517, 1000)):
            part = gumbel(SEEDS[row : row + 1], POSITIONS[row : row + 1], tokens[row : row + 1, start:stop].clone())
            assert torch.equal(part[0], together[row, start:stop])


def test_blocks_hold_the_noise_of_their_tokens_and_know_its_maximum() -> None:
    tokens = torch.arange(7 * BLOCK).expand(4, -1)
    noise = gumbel(SEEDS, POSITIONS, tokens).view(4, 7, BLOCK)
    blocks = torch.tensor([6, 0, 3]).expand(4, -1)
    assert torch.equal(gumbel_of_blocks(SEEDS, POSITIONS, blocks), noise[:, [6, 0, 3]])
    assert torch.equal(largest_gumbel(SEEDS, POSITIONS, 7), noise.amax(-1))


def test_seed_position_and_domain_each_change_everything() -> None:
    tokens = torch.arange(256).expand(1, -1)
    base = gumbel(SEEDS[1:2], POSITIONS[1:2], tokens)
    others = [
        gumbel(SEEDS[1:2] + 1, POSITIONS[1:2], tokens),
        gumbel(SEEDS[1:2] + 2**32, POSITIONS[1:2], tokens),
        gumbel(SEEDS[1:2], POSITIONS[1:2] + 1, tokens),
        gumbel(SEEDS[1:2], in_round(POSITIONS[1:2], torch.tensor([4])), tokens),
        gumbel(SEEDS[1:2], POSITIONS[1:2], tokens, Domain.RESIDUAL),
    ]
    assert all(not bool((base == other).any()) for other in others)


def test_noise_is_gumbel_and_independent_within_a_block() -> None:
    seeds, positions = torch.arange(2000), torch.full((2000,), 3)
    noise = gumbel(seeds, positions, torch.arange(BLOCK).expand(2000, -1)).double()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    # 2016 pairs of 2000 draws each: the largest of their correlations stays below 5.5 standard errors
    correlations = torch.corrcoef((-(-noise).exp()).exp().T) - torch.eye(BLOCK)
    assert float(correlations.abs().max()) < 5.5 / 2000**0.5
    highest = torch.bincount(noise.argmax(-1), minlength=BLOCK)
    assert stats.chisquare(highest.numpy()).pvalue > 1e-3


def test_uniforms_are_uniform_and_open() -> None:
    draws = uniform(torch.arange(500), torch.full((500,), 1), torch.arange(40).expand(500, -1))
    assert draws.dtype == torch.float64
    assert 0.0 < float(draws.min()) < float(draws.max()) < 1.0
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
