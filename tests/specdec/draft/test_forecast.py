"""What drafters will offer, foretold from what they offered."""

import numpy as np
import pytest

from specdec.arrays import FloatArray
from specdec.draft.forecast import Forecast
from specdec.kernels.tree_select import OFFERED

SLOTS = np.array([2, 0])


def offer(*survivals: float) -> FloatArray:
    return np.array([[*survivals, *[0.0] * (OFFERED - len(survivals))]])


def test_a_steady_offer_is_expected_again() -> None:
    forecast = Forecast(3)
    for _ in range(200):
        forecast.observe(np.array([2]), offer(0.9, 0.8, 0.1))
    survivals, there = forecast.expect(SLOTS), forecast.there(SLOTS)
    assert survivals[0, :5].tolist() == pytest.approx([0.9, 0.8, 0.1, 0.0, 0.0], abs=0.02)
    assert there[0, :5].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0, 0.0], abs=0.02)
    assert there[1].tolist() == Forecast(3).there(SLOTS)[1].tolist(), "another sequence is as it was"


def test_the_last_round_tells_more_than_those_before() -> None:
    forecast = Forecast(3)
    for _ in range(50):
        forecast.observe(np.array([0]), offer())
    before = forecast.expect(np.array([0]))[0, 0]
    forecast.observe(np.array([0]), offer(1.0))
    after = forecast.expect(np.array([0]))[0, 0]
    assert before < 0.01
    assert 0.2 < after < 0.5


def test_of_offers_that_come_and_go_the_share_is_kept() -> None:
    forecast = Forecast(3)
    for step in range(400):
        forecast.observe(np.array([1]), offer(1.0) if step % 4 == 0 else offer())
    assert forecast.there(np.array([1]))[0, 0] == pytest.approx(0.25, abs=0.06)


def test_nothing_is_expected_of_a_sequence_until_it_has_had_rounds() -> None:
    forecast = Forecast(3)
    for known in (False, False, True, True):
        assert forecast.known(SLOTS).tolist() == [known, False]
        assert bool(forecast.expect(SLOTS)[0].any()) == known
        assert not forecast.expect(SLOTS)[1].any()
        forecast.observe(np.array([2]), offer(0.5))
    forecast.enter(2)
    assert forecast.known(SLOTS).tolist() == [False, False]
    assert not forecast.expect(SLOTS).any()
    forecast.observe(np.array([2]), offer(0.5))
    forecast.observe(np.array([2]), offer(0.5))
    fresh = Forecast(3)
    for _ in range(2):
        fresh.observe(np.array([2]), offer(0.5))
    assert forecast.expect(SLOTS).tolist() == fresh.expect(SLOTS).tolist(), "nothing is left of who had the slot before"


def test_what_is_expected_falls_from_candidate_to_candidate() -> None:
    forecast = Forecast(1)
    for _ in range(2):
        forecast.observe(np.array([0]), offer(0.4, 0.3))
    survivals, there = forecast.expect(np.array([0]))[0], forecast.there(np.array([0]))[0]
    assert (np.diff(survivals) <= 0).all()
    assert ((survivals >= 0) & (survivals <= there) & (there <= 1)).all()


def test_whoever_asks_may_change_the_answer() -> None:
    forecast = Forecast(2)
    for _ in range(3):
        forecast.observe(np.array([0]), offer(0.4))
    forecast.expect(np.array([0]))[:] = forecast.there(np.array([0]))[:] = 7.0
    assert (forecast.expect(np.array([0])) < 1).all()
    assert (forecast.there(np.array([0])) <= 1).all()
