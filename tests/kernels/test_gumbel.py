"""The noise is Philox's, is Gumbel, and is the same however it is asked for; draws are those of a full evaluation."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from specdec.kernels.gumbel import Keys, gumbel_argmax, gumbel_topk
from specdec.kernels.gumbel.reference import (
    BLOCK,
    gumbel,
    gumbel_argmax_reference,
    gumbel_of_blocks,
    largest_gumbel,
    philox,
    uniform,
)
from tests.kernels.conftest import moved, same

kernel = pytest.importorskip("specdec.kernels.gumbel.kernel")

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
        gumbel(SEEDS[1:2], POSITIONS[1:2] + 2**32, tokens),
        gumbel(SEEDS[1:2], POSITIONS[1:2], tokens, 3),
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
    draws = uniform(torch.arange(500), torch.full((500,), 1), torch.arange(40).expand(500, -1), 1)
    assert draws.dtype == torch.float64
    assert 0.0 < float(draws.min()) < float(draws.max()) < 1.0
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3


def keys_of(size: int) -> Keys:
    """Sequences with seeds and temperatures of their own; every fourth is greedy."""
    noisy = torch.arange(size) % 4 != 3
    temperatures = torch.where(noisy, torch.linspace(0.2, 2.0, size), 1.0)
    return Keys((torch.arange(size) * 0x1234567890AB) % 2**63, temperatures, noisy)


def odd_rows(vocab: int, num: int, scale: float = 2.0) -> tuple[Tensor, Keys, Tensor, Tensor]:
    """Logits, keys, owners and positions: ties, tokens that cannot be drawn, rows without a number, several rows of one key."""
    logits = torch.randn(num, vocab, generator=torch.Generator().manual_seed(vocab)) * scale
    logits[1 % num, 40:] = -torch.inf
    logits[2 % num] = -torch.inf
    logits[4 % num, 3] = torch.nan
    logits[6 % num] = torch.nan
    owners = torch.tensor([5, 1, 2, 3, 0, 0, 4, 2, 2])[torch.arange(num) % 9]
    logits[3 % num, 7] = logits[3 % num, vocab - 1] = 30.0  # of a greedy sequence
    positions = torch.arange(num) * 7 + 2**31 - 20
    return logits, keys_of(6), owners, positions


@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0])  # from flat to peaked: the search settles late, early, and at once
@pytest.mark.parametrize("vocab", [50, 3001, 20_011])
def test_the_search_draws_what_a_full_evaluation_draws(vocab: int, scale: float) -> None:
    arguments = odd_rows(vocab, 9, scale)
    for domain in (0, 2) if vocab < 20_000 else (0,):
        tokens, tops = gumbel_argmax(*arguments, domain=domain)
        expected, expected_tops = gumbel_argmax_reference(*arguments, domain=domain)
        assert tokens.tolist() == expected.tolist()
        assert same(tops, expected_tops)
        assert tops.isnan().tolist() == [row in (4, 6) for row in range(9)]
        assert tokens[3] == 7, "the lower of two equal ones"
        assert ((tokens >= 0) & (tokens < vocab)).all()


def test_greedy_rows_draw_the_largest_logit() -> None:
    logits, _, owners, positions = odd_rows(700, 9)
    logits = logits[[0, 1, 3, 5, 7]]
    plain = Keys(torch.zeros(6, dtype=torch.int64), torch.ones(6), torch.zeros(6, dtype=torch.bool))
    assert torch.equal(gumbel_argmax(logits, plain, owners[:5], positions[:5])[0], logits.argmax(1))


def test_a_row_draws_alike_alone() -> None:
    logits, keys, owners, positions = odd_rows(3001, 9)
    tokens, tops = gumbel_argmax(logits, keys, owners, positions)
    best = gumbel_topk(logits, keys, owners, positions, 5)
    for row in range(9):
        own = slice(row, row + 1)
        alone = gumbel_argmax(logits[own], keys, owners[own], positions[own])
        assert same(alone[0], tokens[own])
        assert same(alone[1], tops[own])
        if not tops[row].isnan():
            there = best[0][own] > -torch.inf
            found = gumbel_topk(logits[own], keys, owners[own], positions[own], 5)
            assert all(same(mine[there], theirs[own][there]) for mine, theirs in zip(found, best, strict=True))


def full_sums(logits_NV: Tensor, keys: Keys, owners_N: Tensor, positions_N: Tensor, domain: int) -> Tensor:
    """logit / T + noise of every token."""
    tokens = torch.arange(logits_NV.shape[1], device=logits_NV.device).expand(len(logits_NV), -1)
    noise = gumbel(keys.seeds_S[owners_N], positions_N + 1, tokens, domain)
    return logits_NV / keys.temperatures_S[owners_N, None] + noise * keys.noisy_S[owners_N, None]


@pytest.mark.parametrize(("vocab", "num"), [(50, 1), (50, 50), (3001, 1), (3001, 5), (3001, 900), (12_000, 70)])
def test_the_best_of_a_search_are_those_of_a_full_evaluation(vocab: int, num: int) -> None:
    logits, keys, owners, positions = odd_rows(vocab, 9)
    logits[[4, 6]] = 0.0  # no NaN
    for domain in (0, 2):
        sums, tokens = gumbel_topk(logits, keys, owners, positions, num, domain=domain)
        expected = full_sums(logits, keys, owners, positions, domain).sort(descending=True, stable=True)
        assert same(sums, expected.values[:, :num])
        for row in (0, 5, 7, 8):
            assert tokens[row].tolist() == expected.indices[row, :num].tolist()
        drawn, _ = gumbel_argmax(logits, keys, owners, positions, domain=domain)
        there = sums[:, 0] > -torch.inf
        assert torch.equal(tokens[there & keys.noisy_S[owners], 0], drawn[there & keys.noisy_S[owners]])


# few rows draw all noise, many look into few blocks; vocabularies are whole chunks, whole blocks or neither
@pytest.mark.parametrize(("vocab", "rows"), [(63, 5), (63, 9), (1024, 1), (1024, 4), (2500, 2), (4200, 9)])
def test_the_kernel_draws_what_the_reference_draws(vocab: int, rows: int, kernel_device: torch.device) -> None:
    arguments = moved(odd_rows(vocab, rows), kernel_device)
    options: list[dict[str, Any]] = [{}, {"domain": 2}, {"early": True}]
    for option in options[: 3 if vocab == 63 else 1]:
        tokens, tops = kernel.gumbel_argmax_triton(*arguments, **option)
        expected, expected_tops = gumbel_argmax_reference(*arguments, domain=option.get("domain", 0))
        assert tokens.tolist() == expected.tolist()
        assert same(tops, expected_tops.cpu())


def test_the_kernel_draws_a_row_alike_in_any_company(kernel_device: torch.device) -> None:
    logits, keys, owners, positions = moved(odd_rows(260, 12), kernel_device)
    together, tops = kernel.gumbel_argmax_triton(logits, keys, owners, positions)
    for rows in (slice(0, 1), slice(3, 8), slice(7, 12)):
        alone = kernel.gumbel_argmax_triton(logits[rows], keys, owners[rows], positions[rows])
        assert torch.equal(alone[0], together[rows])
        assert same(alone[1], tops[rows].cpu())


@pytest.mark.parametrize("vocab", [63, 700])
def test_the_kernel_finds_the_best_that_a_full_evaluation_finds(vocab: int, kernel_device: torch.device) -> None:
    logits, keys, owners, positions = moved(odd_rows(vocab, 9), kernel_device)
    for domain in (0, 2):
        sums, tokens = kernel.gumbel_topk_triton(logits, keys, owners, positions, 4, domain=domain)
        full = full_sums(logits, keys, owners, positions, domain)
        full = torch.where(full.isnan(), -torch.inf, full)
        expected = full.sort(descending=True, stable=True)
        torch.testing.assert_close(sums, expected.values[:, :4])
        for row in (0, 4, 5, 7, 8):
            assert tokens[row].tolist() == expected.indices[row, :4].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [49_152, 151_936])
def test_the_kernel_draws_from_real_vocabularies_as_the_reference_does(vocab: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for rows in (1, 8, 9, 65):
        arguments = moved(odd_rows(vocab, rows, 3.0), torch.device("cuda"))
        tokens, tops = kernel.gumbel_argmax_triton(*arguments)
        expected, expected_tops = gumbel_argmax_reference(*arguments)
        assert torch.equal(tokens, expected)
        assert same(tops, expected_tops.cpu())
