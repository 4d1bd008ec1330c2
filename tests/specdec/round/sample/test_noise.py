"""Streams of noise never share a number; the generator itself is tested with its kernel."""

import pytest
import torch

from specdec.kernels.gumbel.reference import gumbel
from specdec.round.sample.noise import Domain, in_round, uniform

SEEDS, POSITIONS = torch.tensor([7]), torch.tensor([5])
TOKENS = torch.arange(256)[None]


def test_every_stream_has_numbers_of_its_own() -> None:
    for draw in (uniform, gumbel):
        found = [draw(SEEDS, POSITIONS, TOKENS, domain) for domain in Domain]
        assert all(not bool((a == b).any()) for i, a in enumerate(found) for b in found[:i])


def test_uniform_draws_are_those_of_the_rules_unless_told_otherwise() -> None:
    assert torch.equal(uniform(SEEDS, POSITIONS, TOKENS), uniform(SEEDS, POSITIONS, TOKENS, Domain.ACCEPT))


@pytest.mark.parametrize("root", [0, 4, 5])
def test_a_position_has_noise_of_its_own_in_every_round(root: int) -> None:
    roots = torch.tensor([root])
    here = gumbel(SEEDS, in_round(POSITIONS, roots), TOKENS, Domain.DRAFT)
    assert torch.equal(here, gumbel(SEEDS, in_round(POSITIONS, roots), TOKENS, Domain.DRAFT))
    for other in (1, 2, 6, 1 << 20):
        assert not bool((here == gumbel(SEEDS, in_round(POSITIONS, torch.tensor([other])), TOKENS, Domain.DRAFT)).any())
    if root:  # a root at 0 would be the position itself
        assert not bool((here == gumbel(SEEDS, POSITIONS, TOKENS, Domain.DRAFT)).any())
