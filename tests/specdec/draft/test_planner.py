"""The planner in a simulated engine: known costs, known acceptance."""

import numpy as np
import pytest

from specdec.arrays import FloatArray
from specdec.draft.planner import Planner, Seen
from specdec.kernels.tree_select import OFFERED
from tests.specdec.draft.simulation import BUCKETS, NODES, Cost, Engine, cpu_like, dear, flat, make_planner, steep


def best_fixed_speed(cost: Cost, chance: float) -> float:
    """Tokens a second of chains of the best length, kept throughout."""
    lengths: list[int] = BUCKETS[BUCKETS <= NODES].tolist()
    return max((1 - chance**nodes) / (1 - chance) / cost(nodes) for nodes in lengths)


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("cost", [cpu_like, steep])
@pytest.mark.parametrize("prior", [0.5, 0.9])
def test_where_nothing_is_accepted_the_speed_is_that_of_plain_decoding(cost: Cost, prior: float, buckets: bool) -> None:
    engine = Engine(make_planner(cost, prior=prior, buckets=buckets), cost, [0.0], 0.0003, buckets).run(600)
    assert engine.speed > 0.98 / cost(1)


@pytest.mark.parametrize("rounds", [100, 250])
def test_a_short_request_loses_little_either(rounds: int) -> None:
    engine = Engine(make_planner(cpu_like, prior=0.9), cpu_like, [0.0], 0.0003).run(rounds)
    assert engine.speed > (0.985 - 4 / rounds) / cpu_like(1)


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("cost", [cpu_like, steep, flat])
@pytest.mark.parametrize("chance", [0.3, 0.6, 0.8, 0.95])
def test_the_speed_is_close_to_that_of_the_best_fixed_length(cost: Cost, chance: float, buckets: bool) -> None:
    engine = Engine(make_planner(cost, buckets=buckets), cost, [chance], buckets=buckets).run(600)
    # a draft counts for 0.7 of what it gives, so where rows are dear a sixth may be left
    assert engine.speed > (0.84 if cost is steep else 0.9) * best_fixed_speed(cost, chance)


def test_a_drafter_that_costs_more_than_it_wins_is_hardly_asked() -> None:
    engine = Engine(make_planner(cpu_like), cpu_like, [0.5], 0.030).run(600)
    assert engine.speed > 0.9 / cpu_like(1)
    assert np.mean([counts.sum() > 0 for counts in engine.drafted]) < 0.1


@pytest.mark.parametrize("buckets", [False, True])
def test_where_a_row_costs_as_much_as_a_round_nothing_is_drafted_however_right_it_is(buckets: bool) -> None:
    engine = Engine(make_planner(dear, prior=0.8, buckets=buckets), dear, [0.9], buckets=buckets).run(400)
    assert engine.speed > 0.98 / dear(1)
    assert np.sum(engine.drafted[-200:]) < 10


def test_planners_that_are_told_the_same_plan_the_same() -> None:
    one, other = (Engine(make_planner(cpu_like, 2), cpu_like, [0.9, 0.4], 0.0003) for _ in range(2))
    for _ in range(100):
        mine, theirs = one.round(), other.round()
        assert mine.nodes.tolist() == theirs.nodes.tolist()
        assert (mine.odds.tolist(), mine.least, mine.drafting) == (theirs.odds.tolist(), theirs.least, theirs.drafting)


def test_who_takes_over_a_slot_is_planned_for_as_anybody_new() -> None:
    engine = Engine(make_planner(flat, 2, prior=0.8), flat, [0.0, 0.9]).run(100)
    slots, most = np.arange(2), np.full(2, NODES)
    assert engine.planner.plan(slots, most, 0, 512).odds[0] < 0.5
    engine.planner.enter(0, 0.0)
    budgets = engine.planner.plan(slots, most, 0, 512)
    assert budgets.odds[0] == 1.0
    assert budgets.nodes[0] == 1, "nothing is verified before something is known"
    assert budgets.nodes[1] > 1


def plain_round(planner: Planner, survivals: FloatArray) -> int:
    """A round of slot 0 in which so much is offered and nothing comes of it; the nodes that were planned."""
    budgets = planner.plan(np.zeros(1, np.int64), np.array([NODES]), 0, 512)
    nothing = np.zeros((1, 1), np.int64)
    none = np.zeros(1, np.int64)
    planner.observe(Seen(none, none, none, none - 1, none > 0, nothing, nothing - 1, nothing - 1, survivals=survivals[None]))
    return int(budgets.nodes[0])


@pytest.mark.parametrize("cost", [flat, cpu_like])
def test_an_offer_after_a_long_silence_is_given_rows_in_the_very_next_round(cost: Cost) -> None:
    planner = make_planner(cost, buckets=True)
    silence, offer = np.zeros(OFFERED), np.full(OFFERED, 0.93).cumprod()
    assert [plain_round(planner, silence) for _ in range(60)][30:] == [1] * 30
    assert plain_round(planner, offer) == 1, "it was not known yet"
    assert plain_round(planner, offer) > 8
    for _ in range(60):
        plain_round(planner, silence)
    assert plain_round(planner, silence) == 1


@pytest.mark.parametrize("buckets", [False, True])
def test_rows_leave_who_begins_to_be_wrong_and_stay_with_who_is_right(buckets: bool) -> None:
    engine = Engine(make_planner(cpu_like, 2, prior=0.8, buckets=buckets), cpu_like, [0.95, 0.95], buckets=buckets).run(100)
    assert np.mean(engine.drafted[-20:], 0) == pytest.approx([24, 24], abs=8)
    engine.chances = [0.0, 0.95]
    wrong, right = np.mean(engine.run(60).drafted[-20:], 0)
    assert wrong < right / 2
    assert right > 12


@pytest.mark.parametrize("buckets", [False, True])
def test_a_sequence_whose_drafts_are_right_gets_the_rows(buckets: bool) -> None:
    engine = Engine(make_planner(cpu_like, 3, buckets=buckets), cpu_like, [0.97, 0.02, 0.02], buckets=buckets).run(300)
    right, wrong, other = np.mean(engine.drafted[-50:], 0)
    assert right > 4
    assert max(wrong, other) < right / 3


def test_a_sequence_of_which_nothing_is_known_gets_nothing_yet() -> None:
    engine = Engine(make_planner(flat, prior=0.95), flat, [0.95])
    assert [engine.round().nodes.tolist() for _ in range(2)] == [[1], [1]]
    assert engine.round().nodes[0] > 1


def test_with_buckets_the_rows_that_drafts_are_given_fill_one() -> None:
    engine = Engine(make_planner(cpu_like, 3, buckets=True), cpu_like, [0.9, 0.8, 0.1], buckets=True)
    planned = [int(engine.round().nodes.sum()) for _ in range(200)]
    assert set(planned[3:]) <= set(BUCKETS.tolist())
    assert max(planned) > 3


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("buckets", [False, True])
def test_nobody_gets_more_than_he_may_and_all_no_more_than_there_is_room_for(adaptive: bool, buckets: bool) -> None:
    planner = make_planner(flat, 12, adaptive=adaptive, buckets=buckets)
    engine = Engine(planner, flat, [0.95] * 12, buckets=buckets)
    if adaptive:
        engine.run(20)
    most = np.array([0, 1, 2, 5, *[NODES + 9] * 8])
    budgets = planner.plan(np.arange(12), most, 0, 512)
    assert budgets.drafting
    assert (budgets.nodes <= np.minimum(most, NODES)).all()
    assert (budgets.nodes >= np.minimum(most, 1)).all()
    assert budgets.nodes.sum() <= 128
    assert budgets.nodes[4:].sum() > 40


def test_without_adaptivity_all_that_there_is_room_for_is_drafted_evenly() -> None:
    planner = make_planner(steep, 6, adaptive=False)
    assert planner.plan(np.arange(2), np.full(2, 99), 0, 512).nodes.tolist() == [NODES, NODES]
    shared = planner.plan(np.arange(6), np.array([99, 99, 99, 99, 3, 0]), 0, 512)
    assert shared.nodes.tolist() == [32, 31, 31, 31, 3, 0]
    assert shared.least == 0.0


@pytest.mark.parametrize("adaptive", [True, False])
def test_where_nothing_may_be_drafted_no_drafter_runs(adaptive: bool) -> None:
    planner = make_planner(flat, 3, adaptive=adaptive)
    budgets = planner.plan(np.arange(3), np.array([1, 0, 1]), 5, 512)
    assert budgets.nodes.tolist() == [1, 0, 1]
    assert not budgets.drafting
    nobody = Planner(np.zeros(0), num_slots=1, max_nodes=8, max_rows=8, adaptive=adaptive)
    assert nobody.plan(np.zeros(1, np.int64), np.array([8]), 0, 512).nodes.tolist() == [1]


def test_what_is_worth_a_row_depends_on_what_a_row_costs() -> None:
    least = {}
    for cost in (flat, cpu_like, steep):
        engine = Engine(make_planner(cost), cost, [0.9]).run(100)
        least[cost] = float(np.mean([engine.round().least for _ in range(20)]))
    assert least[flat] < least[cpu_like] < least[steep]
    assert min(least.values()) >= 0.02
    assert max(least.values()) <= 0.95


@pytest.mark.parametrize("buckets", [False, True])
def test_drafts_that_pay_alone_pay_beside_a_prompt(buckets: bool) -> None:
    engine = Engine(make_planner(cpu_like, buckets=buckets), cpu_like, [0.9], buckets=buckets).run(100)
    for rows in (0, 60, 200):
        assert engine.planner.plan(np.zeros(1, np.int64), np.array([NODES]), rows, 512).nodes[0] > 1


def test_chances_are_told_when_they_have_moved() -> None:
    planner = make_planner(cpu_like)
    first = planner.new_chances()
    assert first is not None
    assert first.tolist() == [0.5, 0.5]
    assert planner.new_chances() is None
    engine = Engine(planner, cpu_like, [0.95]).run(50)
    assert engine.learned[0] > 0.7
    assert engine.learned[1] == 0.5, "a kind that never came is as it was"


def test_an_offer_that_was_not_verified_teaches_too() -> None:
    planner = make_planner(cpu_like)
    planner.new_chances()
    nothing = np.zeros((1, 1), np.int64)
    for _ in range(60):
        planner.observe(
            Seen(
                slots=np.zeros(1, np.int64),
                accepted=np.zeros(1, np.int64),
                drafted=np.zeros(1, np.int64),
                offers=np.array([1]),
                offered=np.array([True]),
                paths=nothing,
                kinds=nothing - 1,
                parents=nothing - 1,
                survivals=np.zeros((1, OFFERED)),
            )
        )
    chances = planner.new_chances()
    assert chances is not None
    assert chances[1] > 0.8
    assert chances[0] == 0.5


def test_only_drafts_whose_path_was_right_are_judged() -> None:
    """A tree: 1 right, its children 2 wrong and 3 right, 4 below 2 never put to the test, 5 wrong below the root."""
    planner = Planner(np.full(6, 0.5), num_slots=1, max_nodes=8, max_rows=8)
    planner.new_chances()
    seen = Seen(
        slots=np.zeros(1, np.int64),
        accepted=np.array([2]),
        drafted=np.array([5]),
        offers=np.array([1]),
        offered=np.array([True]),
        paths=np.array([[0, 1, 3, 3, 3, 3]]),
        kinds=np.array([[-1, 1, 2, 3, 4, 5]]),
        parents=np.array([[-1, 0, 1, 1, 2, 0]]),
        survivals=np.zeros((1, OFFERED)),
    )
    for _ in range(10):
        planner.observe(seen)
    chances = planner.new_chances()
    assert chances is not None
    assert (np.sign(chances - 0.5)).tolist() == [0, 1, -1, 1, 0, -1]
