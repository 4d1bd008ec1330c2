"""Chances start at their priors, follow outcomes, and forget."""

import numpy as np
import pytest

from specdec.draft.calibration import Calibration

PRIORS = np.array([0.2, 0.9, 0.5])


def observe(calibration: Calibration, kind: int, chance: float, count: int, seed: int = 0) -> None:
    right = np.random.default_rng(seed).random(count) < chance
    for some in np.array_split(right, max(count // 10, 1)):
        calibration.observe(np.full(len(some), kind), some)


def test_before_any_outcome_the_priors_count() -> None:
    assert Calibration(PRIORS).chances.tolist() == PRIORS.tolist()


@pytest.mark.parametrize("chance", [0.05, 0.5, 0.95])
def test_a_chance_comes_to_what_is_observed_and_leaves_others_alone(chance: float) -> None:
    calibration = Calibration(PRIORS)
    observe(calibration, 0, chance, 2000)
    assert calibration.chances[0] == pytest.approx(chance, abs=0.06)
    assert calibration.chances[1:].tolist() == PRIORS[1:].tolist()


def test_few_outcomes_move_a_chance_a_little_and_a_change_is_learned() -> None:
    calibration = Calibration(PRIORS)
    calibration.observe(np.array([1, 1, 2]), np.array([False, False, True]))
    assert 0.8 < calibration.chances[1] < 0.9
    observe(calibration, 2, 0.9, 3000)
    observe(calibration, 2, 0.1, 1500)
    assert calibration.chances[2] < 0.25, "old outcomes are forgotten"


def test_no_chance_is_certain() -> None:
    calibration = Calibration(PRIORS)
    observe(calibration, 1, 2.0, 20_000)
    assert 0.9 < calibration.chances[1] < 1.0
