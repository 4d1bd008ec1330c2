"""Seconds by members: borrowed from fewer, smoothed, steady under outliers."""

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
def test_an_outlier_moves_little(clock: float) -> None:
    seconds = ByMembers()
    seconds.observe(1, 0.001)
    seconds.observe(1, clock)
    assert seconds.of(1) == pytest.approx(0.001, rel=0.101)


def test_an_estimate_of_nearly_nothing_grows_in_steps() -> None:
    slow, fast = ByMembers(), ByMembers()
    for _ in range(20):
        slow.observe(1, 0.0)
        fast.observe(1, 0.0)
    for _ in range(60):
        slow.observe(1, 0.001)
        fast.observe(1, 0.001, step=0.0002)
    assert slow.of(1) == 0.0
    assert fast.of(1) > 0.0009


def test_less_than_nothing_is_nothing() -> None:
    seconds = ByMembers()
    seconds.observe(1, -1.0)
    assert seconds.of(1) == 0.0


def test_news_is_what_becomes_known_or_moves() -> None:
    seconds = ByMembers()
    assert seconds.observe(4, 0.001)
    assert not any(seconds.observe(4, 0.0011) for _ in range(50))
    assert 2 <= sum(seconds.observe(4, 0.002) for _ in range(50)) <= 5
    assert seconds.observe(5, 0.002)
