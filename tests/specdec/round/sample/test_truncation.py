"""Nuclei are those of a full sort, whatever shortcut found them, and a row does not feel its neighbours."""

import math

import pytest
import torch
from torch import Tensor

from specdec.round.sample.truncation import Truncation, sort_descending, truncate, truncate_among

VOCAB = 2500
LIMITS = [  # top_k, top_p, min_p
    (VOCAB, 1.0, 0.0),
    (1, 1.0, 0.0),
    (40, 1.0, 0.0),
    (VOCAB, 0.9, 0.0),
    (VOCAB, 0.998, 0.0),
    (VOCAB, 1e-6, 0.0),
    (VOCAB, 1.0, 0.05),
    (VOCAB, 1.0, 1.0),
    (300, 0.8, 0.001),
    (2300, 0.97, 0.0),
]


def limits(rows: list[tuple[int, float, float]]) -> Truncation:
    top_k, top_p, min_p = zip(*rows, strict=True)
    return Truncation(
        top_k_N=torch.tensor(top_k),
        top_p_N=torch.tensor(top_p, dtype=torch.float64),
        min_p_N=torch.tensor(min_p, dtype=torch.float64),
    )


def scores(ties: bool, scale: float = 2.0) -> Tensor:
    """One row for each of the limits."""
    found = torch.randn(len(LIMITS), VOCAB, generator=torch.Generator().manual_seed(3)) * scale
    return found.mul(2).round().div(2) if ties else found


def by_hand(scores_V: Tensor, top_k: int, top_p: float, min_p: float) -> list[int]:
    """The tokens that are left, in the order of the rules."""
    order = sorted(range(VOCAB), key=lambda token: (-float(scores_V[token]), token))[:top_k]
    masses = [math.exp(float(scores_V[token]) - float(scores_V[order[0]])) for token in order]
    kept, above, total = [], 0.0, sum(masses)
    for token, mass in zip(order, masses, strict=True):
        if (top_p == 1.0 or above < top_p * total) and mass >= min_p:
            kept.append(token)
        above += mass
    return sorted(kept)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("scale", [0.2, 2.0])
def test_what_is_left_is_what_a_full_sort_leaves(ties: bool, scale: float) -> None:
    found = scores(ties, scale)
    left = truncate(found, limits(LIMITS))
    for row, limit in enumerate(LIMITS):
        kept = (left[row] > -torch.inf).nonzero()[:, 0].tolist()
        assert kept == by_hand(found[row], *limit), limit
        assert torch.equal(left[row, kept], found[row, kept])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num", [16, 128, 1024, VOCAB])
def test_a_few_candidates_are_right_where_they_say_that_they_suffice(num: int, ties: bool) -> None:
    found = scores(ties)
    whole = truncate(found, limits(LIMITS))
    left, settled = truncate_among(found, limits(LIMITS), num)
    assert torch.equal(left[settled], whole[settled])
    assert bool(settled[0]), "nothing is dropped"
    assert bool(settled.all()) == (num == VOCAB)
    assert ((left == -torch.inf) | (left == whole)).all(), "what is kept belongs to the nucleus"
    wanted = (whole > -torch.inf).sum(1)
    assert settled[1:][wanted[1:] < num // 2].all() or ties, "it suffices where the nucleus is small"


@pytest.mark.parametrize("ties", [False, True])
def test_a_row_is_truncated_alike_alone(ties: bool) -> None:
    found = scores(ties)
    together, among = truncate(found, limits(LIMITS)), truncate_among(found, limits(LIMITS), 128)
    for row, limit in enumerate(LIMITS):
        own = slice(row, row + 1)
        assert torch.equal(truncate(found[own], limits([limit])), together[own])
        alone = truncate_among(found[own], limits([limit]), 128)
        assert all(torch.equal(a, b[own]) for a, b in zip(alone, among, strict=True))


def test_tokens_that_cannot_be_drawn_stay_out() -> None:
    found = scores(False)[:3]
    found[:, 100:] = -torch.inf
    found[2] = -torch.inf
    found[2, 7] = 0.0
    left = truncate(found, limits([(VOCAB, 0.9, 0.0), (200, 1.0, 0.0), (VOCAB, 0.5, 0.1)]))
    assert not (left[:, 100:] > -torch.inf).any()
    assert (left[1] > -torch.inf).sum() == 100
    assert (left[2] > -torch.inf).nonzero().tolist() == [[7]]


def test_equal_scores_are_ranked_by_token() -> None:
    found = torch.zeros(1, VOCAB)
    assert (truncate(found, limits([(3, 1.0, 0.0)])) == 0).nonzero()[:, 1].tolist() == [0, 1, 2]
    values, tokens = sort_descending(torch.tensor([[1.0, 3.0, 1.0, 3.0, 2.0]]), 5)
    assert tokens.tolist() == [[1, 3, 4, 0, 2]]
    assert values.tolist() == [[3.0, 3.0, 2.0, 1.0, 1.0]]
    assert sort_descending(torch.tensor([[1.0, 3.0, 1.0, 3.0, 2.0]]), 3)[1].tolist() == [[1, 3, 4]]
