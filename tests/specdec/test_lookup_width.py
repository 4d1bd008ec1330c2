"""The width policy: wide where matches are right, narrow where they are not or where rows are dear, for each sequence anew."""

import random

import pytest

from specdec.draft.cost import CostTable
from specdec.lookup_width import WidthPolicy
from specdec.loop_costs import LoopCosts
from specdec.loop_members import SHORTEST_MATCH, SURE_MATCH, LoopPlan, LoopRound, LoopTime

KEYS = ("a",)


def outcome(plan: LoopPlan, matched: int, accepted: int, guessed: bool | None = None) -> LoopRound:
    """One sequence's round; `guessed` where nothing was verified."""
    drafted = plan.width - 1 if matched >= plan.shortest else 0
    return LoopRound(
        plan=plan,
        emitted=[[1] * (min(accepted, drafted) + 1)],
        drafted=[drafted],
        sound=[True],
        matched=[matched],
        guessed=[accepted > 0 if guessed is None else guessed],
        origins=[0],
        seconds=None,
    )


def costs(per_row: float) -> CostTable:
    table = CostTable()
    for rows in (1, 2, 3, 4, 6, 8, 12, 16):
        table.observe(rows, 100, 1.0 + per_row * (rows - 1))
    return table


def policy_of(per_row: float, most_nodes: int = 64, adaptive: bool = True) -> WidthPolicy:
    policy = WidthPolicy(LoopCosts(costs(per_row)), most_nodes, adaptive)
    for key in KEYS:
        policy.start(key)
    return policy


def choose(policy: WidthPolicy, limit: int = 8) -> LoopPlan:
    return policy.choose(KEYS, 100, limit)


def observe(policy: WidthPolicy, matched: int, guessed: bool, times: int = 1) -> None:
    """Plain rounds with such a match."""
    for _ in range(times):
        policy.observe(KEYS, outcome(LoopPlan(1, SURE_MATCH), matched, 0, guessed))


def settled(policy: WidthPolicy, matched: int, right: int, limit: int = 8) -> LoopPlan:
    """The plan after many rounds of one kind; `right` drafts are right each time."""
    for _ in range(200):
        policy.observe(KEYS, outcome(choose(policy, limit), matched, right))
    return choose(policy, limit)


def test_right_matches_widen_and_wrong_ones_narrow() -> None:
    policy = policy_of(0.05)
    assert settled(policy, matched=5, right=7).width == 8
    assert settled(policy, matched=5, right=0).width == 1
    assert settled(policy, matched=5, right=7).width == 8, "guesses are judged even while nothing is verified"


def test_dear_rows_are_not_worth_it() -> None:
    assert settled(policy_of(1.0), matched=5, right=7).width == 1


def test_a_measured_time_outweighs_the_table() -> None:
    policy = policy_of(0.05)
    assert settled(policy, matched=5, right=7).width == 8
    for width in (2, 3, 4, 6, 8):
        policy.costs.observe(LoopTime(1, width, width - 1, 50.0))
    policy.costs.observe(LoopTime(1, 1, 0, 1.0))
    assert choose(policy).width == 1


@pytest.mark.parametrize(("most", "limit", "expected"), [(64, 8, 8), (5, 8, 5), (64, 3, 3), (1, 8, 1)])
def test_limits_hold_and_without_adaption_they_are_used(most: int, limit: int, expected: int) -> None:
    fixed = choose(policy_of(1.0, most, adaptive=False), limit)
    assert fixed == LoopPlan(expected, SHORTEST_MATCH if expected > 1 else 0)
    assert settled(policy_of(0.01, most), 5, 7, limit).width <= expected


def test_a_streak_widens_at_once_and_a_miss_narrows() -> None:
    """Matches that are right by chance half the time, and always once they were right three times."""
    policy = policy_of(0.3)
    for _ in range(60):
        for right in (False, True, False, *[True] * 40):
            observe(policy, matched=5, guessed=right)
        observe(policy, matched=5, guessed=False)
    assert choose(policy).width <= 2, "after a miss"
    observe(policy, matched=5, guessed=True, times=4)
    assert choose(policy).width == 8, "four right ones in a row"
    policy.observe(KEYS, outcome(LoopPlan(8, SURE_MATCH), matched=5, accepted=3))
    assert choose(policy).width <= 2, "a draft that went wrong"


@pytest.mark.parametrize(("per_row", "shortest"), [(0.01, SHORTEST_MATCH), (0.4, SURE_MATCH)])
def test_a_single_token_s_match_is_drafted_from_where_rows_are_cheap(per_row: float, shortest: int) -> None:
    """Sure matches are right nine times of ten, a single token's one time of five."""
    policy, rng = policy_of(per_row), random.Random(1)
    for _ in range(600):
        matched = rng.choice((1, 1, 4))
        observe(policy, matched, guessed=rng.random() < (0.9 if matched > 1 else 0.2))
    observe(policy, matched=1, guessed=False)
    plan = choose(policy)
    assert plan.shortest == shortest
    assert plan.width > 1


def test_a_sequence_has_its_own_habits_and_the_next_one_starts_without_them() -> None:
    policy = policy_of(0.45)
    policy.start("b")
    keys, plan = ("a", "b"), LoopPlan(1, SURE_MATCH)
    for turn in range(400):  # matches of one are right three times of four, those of the other never
        policy.observe(("a",), outcome(plan, matched=5, accepted=0, guessed=turn % 4 != 3))
        policy.observe(("b",), outcome(plan, matched=5, accepted=0, guessed=False))
    assert policy.choose(("a",), 100, 8).width > 1
    assert policy.choose(("b",), 100, 8).width == 1
    before = policy.choose(("a",), 100, 8)
    for _ in range(30):
        policy.observe(("a",), outcome(plan, matched=5, accepted=0, guessed=False))
    assert policy.choose(("a",), 100, 8).width < before.width, "what a sequence does now outweighs what it did"
    policy.release("b")
    policy.observe(keys, LoopRound(
        plan=plan, emitted=[[1], [1]], drafted=[0, 0], sound=[True, True], matched=[5, 5], guessed=[True, True],
        origins=[0, 0], seconds=None,
    ))  # fmt: skip
    policy.start("b")
    assert policy.choose(("b",), 100, 8).width == policy_of(0.45).choose(KEYS, 100, 8).width


def test_many_sequences_are_judged_once_in_a_while() -> None:
    policy = policy_of(0.01)
    keys = tuple(f"many {number}" for number in range(32))
    for key in keys:
        policy.start(key)
        for _ in range(50):
            policy.observe((key,), outcome(LoopPlan(1, SURE_MATCH), matched=5, accepted=0, guessed=False))
    assert policy.choose(keys, 100, 4).width == 1
    for key in keys:
        for _ in range(100):
            policy.observe((key,), outcome(LoopPlan(1, SURE_MATCH), matched=5, accepted=0, guessed=True))
    assert [policy.choose(keys, 100, 4).width for _ in range(4)] == [1, 1, 1, 4]
    assert policy.choose(keys, 100, 2).width == 2, "room is minded at once"
    assert policy.choose(keys[:9], 100, 4).width == 4
    policy.release(keys[0])
    assert policy.choose(keys[1:], 100, 4).width == 4, "whoever is left is judged"


def test_a_wider_round_is_never_held_to_be_cheaper() -> None:
    """One row measured at a long context, eight at a short one: where nothing matches, one row it is."""
    policy = policy_of(0.05)
    observe(policy, matched=0, guessed=False, times=100)
    for width, seconds in ((1, 2.0), (2, 1.1), (4, 1.2), (8, 1.3)):
        policy.costs.observe(LoopTime(1, width, 0, seconds))
        policy.costs.observe(LoopTime(1, width, width - 1, seconds))
    assert choose(policy).width == 1
    assert settled(policy, matched=5, right=7).width == 8
