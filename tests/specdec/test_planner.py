"""The planner in a simulated engine: known costs, known acceptance."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from specdec.draft.cost import CostTable
from specdec.draft.planner import Planner
from specdec.draft.tree import DraftTree

Cost = Callable[[int], float]
MEASURED_ROWS = (1, 2, 4, 8, 16, 32, 64)


def cpu_like(rows: int) -> float:
    return 0.0135 + 0.0004 * rows


def steep(rows: int) -> float:
    return 0.004 + 0.010 * rows


def make_planner(cost: Cost, max_nodes: int = 64, shape_only: bool = False) -> Planner:
    planner = Planner(["a"], max_nodes, shape_only=shape_only)
    for rows in MEASURED_ROWS:
        planner.observe_cost(rows, 512, cost(rows))
    planner.start("r")
    return planner


@dataclass
class Run:
    """Tokens and seconds of a simulated request."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def chain(length: int, confidence: float) -> DraftTree:
    return DraftTree.chain(0, list(range(1, length + 1)), 0, np.full(length, np.log(confidence)))


def simulate(cost: Cost, chance: float, claimed: float, rounds: int = 600, drafting: float = 0.0) -> Run:
    """Chains whose tokens are each right with `chance`, while the drafter claims `claimed`."""
    rng, run = np.random.default_rng(0), Run()
    planner = make_planner(cost)
    for _ in range(rounds):
        nodes = planner.budget("r", 1, 512)
        tree = DraftTree.root(0)
        if nodes > 1:
            tree = chain(nodes - 1, claimed)
            run.seconds += drafting
            planner.observe_draft(0, drafting, 1)
            tree = tree.select(planner.plan(["r"], [tree], 0, 512)[0])
        right = rng.random(len(tree) - 1) < chance
        accepted = int(np.cumprod(right).sum())
        planner.observe("r", tree, np.arange(accepted + 1))
        seconds = cost(len(tree)) * rng.uniform(0.97, 1.03)
        planner.observe_cost(len(tree), 512, seconds)
        run.seconds += seconds
        run.tokens += accepted + 1
    return run


def best_fixed_speed(cost: Cost, chance: float) -> float:
    """Tokens a second of chains of the best length, kept throughout."""
    return max((1 - chance**nodes) / (1 - chance) / cost(nodes) for nodes in range(1, 65))


@pytest.mark.parametrize("cost", [cpu_like, steep])
@pytest.mark.parametrize("claimed", [0.5, 0.9])
def test_where_nothing_is_accepted_the_speed_is_that_of_plain_decoding(cost: Cost, claimed: float) -> None:
    assert simulate(cost, 0.0, claimed, drafting=0.0003).speed > 0.98 / cost(1)


@pytest.mark.parametrize("rounds", [100, 250])
def test_a_short_request_loses_little_either(rounds: int) -> None:
    assert simulate(cpu_like, 0.0, 0.9, rounds, drafting=0.0003).speed > (0.985 - 3.0 / rounds) / cpu_like(1)


@pytest.mark.parametrize("cost", [cpu_like, steep])
@pytest.mark.parametrize("chance", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("claimed", [0.4, 0.9])
def test_the_speed_is_close_to_that_of_the_best_fixed_length(cost: Cost, chance: float, claimed: float) -> None:
    assert simulate(cost, chance, claimed).speed > 0.93 * best_fixed_speed(cost, chance)


def test_a_drafter_that_costs_more_than_it_wins_is_hardly_asked() -> None:
    assert simulate(cpu_like, 0.5, 0.5, drafting=0.030).speed > 0.97 / cpu_like(1)


def test_drafts_come_back_when_they_become_right() -> None:
    planner, kept = make_planner(cpu_like), []
    for step in range(500):
        tree = chain(max(planner.budget("r", 1, 512) - 1, 1), 0.7)
        tree = tree.select(planner.plan(["r"], [tree], 0, 512)[0])
        kept.append(len(tree) - 1)
        planner.observe("r", tree, np.arange(len(tree) if step >= 200 else 1))
    assert np.mean(kept[100:200]) < 0.5
    assert np.mean(kept[450:]) > 16


def bushy() -> DraftTree:
    return DraftTree(
        tokens=np.array([0, 1, 2, 3, 4, 5, 6]),
        parents=np.array([0, 0, 0, 1, 1, 2, 3]),
        log_q=np.log(np.array([1.0, 0.6, 0.3, 0.9, 0.05, 0.9, 0.9])),
        ranks=np.array([0, 0, 1, 0, 1, 0, 0]),
        sources=np.array([-1, 0, 0, 0, 0, 0, 0]),
    )


@pytest.mark.parametrize("slope", [0.0001, 0.001, 0.003, 0.01])
def test_what_is_kept_is_closed_under_parents(slope: float) -> None:
    planner = make_planner(lambda rows: 0.01 + slope * rows)
    planner.start("s")
    for tree, keep in zip([bushy(), chain(20, 0.8)], planner.plan(["r", "s"], [bushy(), chain(20, 0.8)], 0, 512), strict=True):
        assert keep[0]
        assert (keep[tree.parents] | ~keep).all()


def test_the_likeliest_nodes_of_all_sequences_are_kept() -> None:
    planner = make_planner(steep)
    planner.start("s")
    keeps = planner.plan(["r", "s"], [chain(8, 0.97), chain(8, 0.1)], 0, 512)
    assert keeps[0].sum() > 1
    assert keeps[1].sum() == 1


def test_without_adaptivity_everything_is_kept() -> None:
    planner = Planner(["a"], 64, adaptive=False)
    planner.start("r")
    assert planner.budget("r", 1, 512) == 64
    assert planner.plan(["r"], [bushy()], 0, 512)[0].all()


def test_shape_only_does_not_look_at_what_was_drawn() -> None:
    keeps = []
    for confidences in (0.99, 0.01):
        planner = make_planner(cpu_like, shape_only=True)
        keeps.append(planner.plan(["r"], [chain(20, confidences)], 0, 512)[0])
        planner.observe("r", chain(20, confidences), np.arange(4))
        keeps.append(planner.plan(["r"], [chain(20, confidences)], 0, 512)[0])
    assert (keeps[0] == keeps[2]).all()
    assert (keeps[1] == keeps[3]).all()
    assert keeps[0].sum() > 1


def test_prompt_rows_make_drafts_cheaper_only_by_what_they_share() -> None:
    alone = make_planner(cpu_like).plan(["r"], [chain(60, 0.8)], 0, 512)[0]
    beside = make_planner(cpu_like).plan(["r"], [chain(60, 0.8)], 200, 512)[0]
    assert abs(int(alone.sum()) - int(beside.sum())) <= 16


def test_costs_interpolate_and_never_fall() -> None:
    table = CostTable()
    for rows in (1, 16, 64):
        table.observe(rows, 100, cpu_like(rows))
    table.observe(8, 100, 0.001)  # a clock that jumped
    seconds = table.seconds(np.arange(1, 200), 100)
    assert (np.diff(seconds) >= 0).all()
    assert seconds[31] == pytest.approx(cpu_like(32), rel=0.02)
    assert seconds[127] == pytest.approx(cpu_like(128), rel=0.05)


def test_a_context_without_measurements_borrows_the_nearest_shape() -> None:
    table = CostTable()
    for rows in MEASURED_ROWS:
        table.observe(rows, 256, cpu_like(rows))
    table.observe(1, 4096, 1.5 * cpu_like(1))
    assert table.seconds(np.array([32]), 4096)[0] == pytest.approx(1.5 * cpu_like(32), rel=0.05)


def test_one_outlier_moves_a_cost_little() -> None:
    table = CostTable()
    for _ in range(5):
        table.observe(1, 100, 0.01)
    table.observe(1, 100, 10.0)
    assert table.seconds(np.array([1]), 100)[0] < 0.0111


def test_the_cost_of_one_number_of_rows_follows_the_measurements() -> None:
    table = CostTable()
    for rows, seconds in ((1, 1.0), (8, 2.0)):
        table.observe(rows, 100, seconds)
    assert table.seconds_of(8, 100) == table.seconds(np.array([8]), 100)[0] == 2.0
    for _ in range(40):
        table.observe(8, 100, 3.0)
    assert table.seconds_of(8, 100) == table.seconds(np.array([8]), 100)[0] > 2.5
