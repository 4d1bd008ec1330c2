"""The width policy: wide where matches are right, narrow where they are not or where rows are dear."""

import numpy as np
import pytest

from specdec.cost import CostTable
from specdec.lookup_width import WidthPolicy
from specdec.loop_members import LoopRound


def outcome(width: int, found: bool, accepted: int, guessed: bool | None = None) -> LoopRound:
    """One sequence's round; `guessed` where nothing was verified."""
    drafted = width - 1 if found else 0
    return LoopRound(
        width=width,
        emitted=[[1] * (min(accepted, drafted) + 1)],
        drafted=[drafted],
        sound=np.ones(1, np.bool_),
        found=np.array([found]),
        guessed=np.array([accepted > 0 if guessed is None else guessed]),
        origins=np.zeros(1, np.int64),
        seconds=None,
    )


def costs(per_row: float) -> CostTable:
    table = CostTable()
    for rows in (1, 2, 3, 4, 6, 8, 12, 16):
        table.observe(rows, 100, 1.0 + per_row * (rows - 1))
    return table


def settled(policy: WidthPolicy, found: bool, right: int, limit: int = 8) -> int:
    """The width after many rounds of one kind; `right` drafts are right each time."""
    for _ in range(200):
        width = policy.choose(1, 100, limit)
        policy.observe(outcome(width, found, right, guessed=right > 0))
    return policy.choose(1, 100, limit)


def test_right_matches_widen_and_wrong_ones_narrow() -> None:
    policy = WidthPolicy(costs(0.05), most_nodes=64, adaptive=True)
    assert settled(policy, found=True, right=7) == 8
    assert settled(policy, found=True, right=0) == 1
    assert settled(policy, found=True, right=7) == 8, "guesses are judged even while nothing is verified"


def test_dear_rows_are_not_worth_it() -> None:
    assert settled(WidthPolicy(costs(1.0), 64, True), found=True, right=7) == 1


def test_a_measured_time_outweighs_the_table() -> None:
    policy = WidthPolicy(costs(0.05), 64, True)
    assert settled(policy, found=True, right=7) == 8
    for width in (2, 3, 4, 6, 8):
        policy.observe_seconds(1, width, 50.0)
    policy.observe_seconds(1, 1, 1.0)
    assert policy.choose(1, 100, 8) == 1


def test_a_width_that_was_never_timed_is_compared_by_the_measured_one_beside_it() -> None:
    policy = WidthPolicy(costs(0.05), 64, True)
    for _ in range(200):
        policy.observe(outcome(8, found=False, accepted=0))
    policy.observe_seconds(1, 8, 0.6)  # the device alone is faster than the rounds of the table, which the host laid out
    assert policy.choose(1, 100, 8) == 1


@pytest.mark.parametrize(("most", "limit", "expected"), [(64, 8, 8), (5, 8, 5), (64, 3, 3), (1, 8, 1)])
def test_limits_hold_and_without_adaption_they_are_used(most: int, limit: int, expected: int) -> None:
    assert WidthPolicy(costs(1.0), most, adaptive=False).choose(1, 100, limit) == expected
    assert settled(WidthPolicy(costs(0.01), most, True), True, 7, limit) <= expected


def test_a_streak_widens_at_once_and_a_miss_narrows() -> None:
    """Matches that are right by chance half the time, and always once they were right three times."""
    policy = WidthPolicy(costs(0.3), most_nodes=64, adaptive=True)
    for _ in range(60):
        for right in (False, True, False, *[True] * 40):
            policy.observe(outcome(1, found=True, accepted=0, guessed=right))
        policy.observe(outcome(1, found=True, accepted=0, guessed=False))
    assert policy.choose(1, 100, 8) <= 2, "after a miss"
    for _ in range(4):
        policy.observe(outcome(1, found=True, accepted=0, guessed=True))
    assert policy.choose(1, 100, 8) == 8, "four right ones in a row"
    policy.observe(outcome(8, found=True, accepted=3))
    assert policy.choose(1, 100, 8) <= 2, "a draft that went wrong"


def test_sequences_are_told_apart_as_long_as_they_are_the_same() -> None:
    policy = WidthPolicy(costs(0.0), most_nodes=64, adaptive=True)
    policy.observe(outcome(1, found=True, accepted=0, guessed=True))
    assert policy.choose(2, 100, 8) == 8, "nothing is known of two sequences, whose rows cost nothing"
