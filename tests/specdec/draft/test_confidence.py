"""Kinds tell depth, rank and the drafter's probability apart, and their priors are what they say."""

import numpy as np
import pytest
import torch

from specdec.draft.confidence import ConfidenceKinds

PRIORS = np.array([0.6, 0.15])


def log_q(*chances: float) -> torch.Tensor:
    return torch.tensor([chances]).log()


def test_a_candidates_prior_is_about_its_probability() -> None:
    confidence = ConfidenceKinds(3, PRIORS, told=True)
    for chance in (0.001, 0.07, 0.3, 0.55, 0.93, 0.999):
        for kind in confidence.of(1, log_q(chance, chance))[0].tolist():
            assert confidence.kinds.priors_X[kind] == pytest.approx(chance, abs=0.08)
    assert len(confidence.kinds.priors_X) == len(confidence.kinds.sources_X) == 3 * 2 * 11


def test_depth_rank_and_probability_each_make_another_kind() -> None:
    confidence = ConfidenceKinds(2, PRIORS, told=True)
    kinds = [
        kind
        for level in range(2)
        for chance in (0.02, 0.5, 0.99)
        for kind in confidence.of(level, log_q(chance, chance))[0].tolist()
    ]
    assert len(set(kinds)) == len(kinds) == 12
    assert max(kinds) < len(confidence.kinds.priors_X)


def test_a_token_that_cannot_be_drawn_and_one_that_is_certain_have_kinds() -> None:
    confidence = ConfidenceKinds(1, PRIORS, told=True)
    kinds = confidence.of(0, torch.tensor([[0.0, -torch.inf]]))[0].tolist()
    assert confidence.kinds.priors_X[kinds[0]] > 0.98
    assert confidence.kinds.priors_X[kinds[1]] < 0.05


def test_untold_the_kinds_do_not_depend_on_what_was_drawn() -> None:
    confidence = ConfidenceKinds(2, PRIORS, told=False)
    assert confidence.kinds.priors_X.tolist() == [0.6, 0.15, 0.6, 0.15]
    chances = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    assert confidence.of(0, chances.log()).tolist() == [[0, 1]] * 3
    assert confidence.of(1, chances.log()).tolist() == [[2, 3]] * 3
