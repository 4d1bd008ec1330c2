"""What the planner learns from a round: what rows cost, and what drafting costs beside them."""

import numpy as np
import pytest

from specdec.draft.planner import Planner
from specdec.engine.learning import learn
from specdec.kernels.tree_select import OFFERED
from specdec.round.outcome import Outcome, outcome_width
from specdec.round.plan import RoundPlan, RoundShape

PLAIN, DRAFTED = 0.001, 0.0012


def outcome(nodes: list[int], drafting: bool, seconds: float, chunk: int = 0) -> Outcome:
    """Of a round in which nothing was offered."""
    members = len(nodes)
    plan = RoundPlan(
        slots=np.arange(members),
        firsts=np.zeros(members, np.int64),
        chunks=np.array([chunk] + [0] * (members - 1)),
        nodes=np.array(nodes),
        pages=1,
        odds=np.ones(members),
        least=0.0,
        drafting=drafting,
    )
    most = max(nodes)
    shape = RoundShape(members, chunk, sum(nodes), most, 1, bool(chunk), members, drafting=drafting)
    told = np.zeros((members, outcome_width(most, drafting)), np.int64)
    told[:, 1] = 1
    told[:, 3] = -1
    if drafting:
        told[:, -OFFERED - most : -OFFERED] = -1
    return Outcome.read(told, plan, shape, seconds, None)


@pytest.fixture
def planner() -> Planner:
    planner = Planner(np.array([0.5]), num_slots=4, max_nodes=8, max_rows=32, row_buckets=np.array([1, 2, 4, 8]))
    for _ in range(30):
        learn(planner, outcome([1, 1], False, PLAIN), np.ones(2, np.bool_), 100)
    return planner


def test_rounds_that_only_look_for_drafts_tell_what_that_costs(planner: Planner) -> None:
    planner.costs.observe_drafting(2, 1e-5)  # what the device alone takes
    for _ in range(80):
        learn(planner, outcome([1, 1], True, DRAFTED), np.ones(2, np.bool_), 100)
    assert planner.costs.drafting(2) == pytest.approx(DRAFTED - PLAIN, rel=0.05)
    assert planner.costs.plain(2, 100) == pytest.approx(PLAIN)


@pytest.mark.parametrize(("nodes", "chunk"), [([4, 4], 0), ([1, 1], 6)], ids=["verifies", "reads a prompt"])
def test_rounds_that_do_more_tell_what_rows_cost(planner: Planner, nodes: list[int], chunk: int) -> None:
    planner.costs.observe_drafting(2, 1e-5)
    rows = sum(nodes) + chunk
    if not chunk:  # what eight rows take that all differ
        planner.costs.observe(rows, rows, 100, 2 * DRAFTED)
    for _ in range(80):
        learn(planner, outcome(nodes, True, DRAFTED, chunk), np.ones(2, np.bool_), 100)
    assert planner.costs.drafting(2) == 1e-5
    if chunk:
        assert planner.costs.plain(rows, 100) == pytest.approx(DRAFTED, rel=0.05)
    else:  # of rows that were drafted, none was found: all but the roots repeat others
        whole = planner.costs.seconds(np.array([rows]), np.array([2]), 100)
        assert float(whole[0]) == pytest.approx(DRAFTED - 1e-5, rel=0.02)
