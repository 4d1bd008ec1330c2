"""How a sequence differs from others is learned from its own outcomes."""

import numpy as np
import pytest

from specdec.draft.habits import Habits

SLOTS = np.arange(3)


def observe(habits: Habits, slot: int, claimed: float, chance: float, count: int) -> None:
    right = np.random.default_rng(slot).random(count) < chance
    for some in np.array_split(right, max(count // 4, 1)):
        habits.observe(np.full(len(some), slot), np.full(len(some), claimed), some)


def shown(habits: Habits, slot: int, claimed: float) -> float:
    """The chance of a draft of this sequence."""
    odds = habits.odds(SLOTS)[slot] * claimed / (1.0 - claimed)
    return float(odds / (1.0 + odds))


@pytest.mark.parametrize(("claimed", "chance"), [(0.5, 0.8), (0.5, 0.2), (0.8, 0.8), (0.7, 0.4)])
def test_odds_come_to_what_a_sequence_shows(claimed: float, chance: float) -> None:
    habits = Habits(3)
    observe(habits, 1, claimed, chance, 600)
    assert shown(habits, 1, claimed) == pytest.approx(chance, abs=0.08)
    assert habits.odds(SLOTS)[[0, 2]].tolist() == [1.0, 1.0]


def test_odds_are_bounded_and_told_in_steps() -> None:
    habits = Habits(3)
    observe(habits, 0, 0.5, 0.0, 2000)
    observe(habits, 1, 0.5, 1.1, 2000)
    assert np.log(habits.odds(SLOTS)).tolist() == pytest.approx([-2.0, 2.0, 0.0])
    observe(habits, 2, 0.5, 0.6, 30)
    steps = np.log(habits.odds(SLOTS)) / 0.25
    assert steps.tolist() == pytest.approx(steps.round().tolist())


def test_a_new_sequence_starts_anew_and_by_its_temperature() -> None:
    habits = Habits(3)
    observe(habits, 0, 0.5, 0.9, 100)
    for slot, temperature in enumerate((1.0, 0.0, 1.7)):
        habits.enter(slot, temperature)
    cool, greedy, hot = habits.odds(SLOTS)
    assert cool == greedy == 1.0, "chances are learned for these"
    assert hot < 1.0
    habits.enter(0, 0.3)
    assert habits.odds(SLOTS)[0] > 1.0


def test_the_newest_outcomes_outweigh_old_ones() -> None:
    habits = Habits(3)
    observe(habits, 0, 0.5, 0.9, 2000)
    observe(habits, 0, 0.5, 0.1, 300)
    assert habits.odds(SLOTS)[0] < 0.5
