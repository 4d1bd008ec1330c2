"""Seconds by members: borrowed from fewer, steady under outliers."""

import pytest

from specdec.draft.by_members import ByMembers


def test_what_is_not_known_is_that_of_the_nearest_fewer_members() -> None:
    seconds = ByMembers()
    assert seconds.of(1) == seconds.of(300) == 0.0
    seconds.observe(8, 0.002)
    seconds.observe(32, 0.005)
    assert [seconds.of(members) for members in (4, 8, 9, 31, 32, 33, 5000)] == [0.0, 0.002, 0.002, 0.005, 0.005, 0.005, 0.005]


def test_a_bucket_learns_by_itself() -> None:
    seconds = ByMembers()
    for _ in range(100):
        seconds.observe(7, 0.001)
        seconds.observe(100, 0.004)
    assert seconds.of(8) == pytest.approx(0.001)
    assert seconds.of(128) == pytest.approx(0.004)


@pytest.mark.parametrize("clock", [0.0, 1000.0])
@pytest.mark.parametrize("first", [True, False])
def test_an_outlier_counts_for_nothing_wherever_it_comes(clock: float, first: bool) -> None:
    seconds = ByMembers()
    for value in [clock, 0.001, 0.001] if first else [0.001, clock, 0.001]:
        seconds.observe(1, value)
    assert seconds.of(1) == 0.001


def test_a_lasting_change_is_followed() -> None:
    seconds = ByMembers()
    for value in (0.001, 0.003, 0.0005):
        for _ in range(5):
            seconds.observe(1, value)
    assert seconds.of(1) == 0.0005


def test_less_than_nothing_is_nothing() -> None:
    seconds = ByMembers()
    seconds.observe(1, -1.0)
    assert seconds.of(1) == 0.0


def test_news_is_what_becomes_known_or_moves() -> None:
    seconds = ByMembers()
    assert seconds.observe(4, 0.001)
    assert not any(seconds.observe(4, 0.0011) for _ in range(50))
    assert sum(seconds.observe(4, 0.002) for _ in range(50)) == 1
    assert seconds.observe(5, 0.002)


def test_fewer_than_the_least_measurements_tell_nothing_and_what_is_forgotten_nothing_either() -> None:
    seconds = ByMembers(least=3)
    assert [seconds.observe(4, 0.001), seconds.of(4)] == [False, 0.0]
    assert [seconds.observe(4, 0.1), seconds.of(4)] == [False, 0.0]
    assert [seconds.observe(4, 0.002), seconds.of(4)] == [True, 0.002]
    assert [seconds.forget(4), seconds.of(4)] == [True, 0.0]
    for _ in range(5):
        seconds.forget(4)
    assert seconds.of(4) == 0.0
