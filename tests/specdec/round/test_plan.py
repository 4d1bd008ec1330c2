"""A plan's tables say what the plan says, whatever the bucket; buckets hold what they must."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.arrays import IntArray
from specdec.kernels.tree_select import MAX_NODES
from specdec.round.plan import (
    CHUNK_BUCKETS,
    MOST_TREE_ROWS,
    ROW_BUCKETS,
    PlanTables,
    RoundPlan,
    chunk_bucket,
    flatten,
    page_bucket,
    power_of_two,
    row_bucket,
    spread,
)
from tests.specdec.conftest import plan_of

SPARE = 9
# reads on, ends its prompt, decodes with a tree, decodes plainly
PLAN = plan_of([4, 0, 7, 2], [(10, 5), (0, 3), (-1, 0), (-1, 0)], [0, 1, 6, 1], 3)


def tables(plan: RoundPlan, members: int, chunk: int, trees: int) -> PlanTables:
    flat = flatten(plan, members, chunk, trees, SPARE)
    assert len(flat) == PlanTables.size(members, chunk, trees)
    return PlanTables(torch.from_numpy(flat), members, chunk, trees)


@pytest.mark.parametrize("members", [4, 6, 7])
@pytest.mark.parametrize("chunk", [8, 11])
@pytest.mark.parametrize("trees", [8, 12])
def test_tables_say_what_the_plan_says_and_padding_is_the_spare_slot(members: int, chunk: int, trees: int) -> None:
    found, spare = tables(PLAN, members, chunk, trees), members - 4
    layout = found.layout
    rows = PLAN.rows(trees).tolist()
    assert layout.texts_M.tolist() == [4, 0, 7, 2] + [SPARE] * spare
    assert found.budgets_M.tolist() == [0, 1, 6, 1] + [0] * spare
    assert layout.nodes_M.tolist() == rows + [0] * spare
    assert layout.firsts_M[1:4].tolist() == [0, rows[1], rows[1] + rows[2]]
    assert layout.bases_M.tolist() == [15, -1, -1, -1] + [0] * spare
    assert layout.starts_M[:4].tolist() == [10, 0, -1, -1]
    assert layout.trees_T.tolist() == [member for member in range(4) for _ in range(rows[member])]
    assert found.chunk_slots_C.tolist() == [4] * 5 + [0] * (chunk - 5)
    assert found.chunk_members_C.tolist() == [0] * 5 + [1] * (chunk - 5)
    assert found.chunk_positions_C.tolist() == [10, 11, 12, 13, 14, 0, 1, 2] + [2] * (chunk - 8)
    assert found.count_1.tolist() == [8]
    assert found.marks_MX.tolist() == [[-1, -1]] * members


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_odds_and_marks_reach_the_tables(members: int) -> None:
    plan = RoundPlan(
        slots=np.array([1]),
        firsts=np.array([0]),
        chunks=np.array([0]),
        nodes=np.array([3]),
        pages=1,
        odds=np.array([1.75]),
        least=0.125,
        marks=np.array([[64, 128]]),
        mark_slots=np.array([[5, 6]]),
    )
    found = tables(plan, members, 0, 3)
    assert found.odds_M[0] == 1.75
    assert found.least_1.tolist() == [0.125]
    assert (found.marks_MX[0].tolist(), found.mark_slots_MX[0].tolist()) == ([64, 128], [5, 6])
    assert (found.marks_MX[1:] == -1).all()
    assert found.layout.starts_M[0] == -1, "it reads nothing"
    assert found.odds_M.dtype == found.least_1.dtype == torch.float32


def test_a_layout_can_be_exchanged() -> None:
    found = tables(PLAN, 4, 8, 8)
    other = tables(PLAN, 4, 8, 12).layout
    assert found.with_layout(other).layout is other
    assert found.layout is not other


NODES = st.lists(st.integers(0, MAX_NODES), min_size=1, max_size=8).filter(lambda nodes: 0 < sum(nodes) <= MOST_TREE_ROWS)


@given(NODES)
def test_rows_fill_a_bucket_and_no_tree_grows_beyond_the_largest(counts: list[int]) -> None:
    nodes: IntArray = np.array(counts)
    trees = row_bucket(int(nodes.sum()))
    rows = spread(nodes, trees)
    assert rows.sum() == trees
    assert (rows >= nodes).all()
    assert (rows <= MAX_NODES).all()
    assert (rows[nodes == 0] == 0).all()
    given_more = (rows - nodes)[(nodes > 0) & (rows < MAX_NODES)]
    assert np.ptp(given_more) <= 1 if len(given_more) else True


def test_one_large_tree_beside_a_root_leaves_what_is_left_to_the_root() -> None:
    assert spread(np.array([64, 1]), 96).tolist() == [64, 32]
    assert spread(np.array([3, 0, 1]), 8).tolist() == [5, 0, 3]


def test_plans_whose_tables_are_equal_have_equal_keys() -> None:
    def decoding(**changed: object) -> RoundPlan:
        fields = {"slots": np.array([1, 2]), "nodes": np.array([1, 3]), "odds": np.ones(2), "pages": 2, "least": 0.1} | changed
        return RoundPlan(firsts=np.array([-1, -1]), chunks=np.zeros(2, np.int64), **fields)  # type: ignore[arg-type]

    assert decoding().key == decoding().key
    others = [
        decoding(slots=np.array([1, 3])),
        decoding(nodes=np.array([2, 2])),
        decoding(odds=np.array([1.0, 2.0])),
        decoding(pages=3),
        decoding(least=0.2),
        decoding(drafting=True),
    ]
    assert len({plan.key for plan in [decoding(), *others]}) == 7
    assert PLAN.key is None, "it reads prompts"


def test_counts_add_up() -> None:
    assert (len(PLAN), PLAN.num_chunk, PLAN.num_nodes, PLAN.num_trees) == (4, 8, 8, 3)


@pytest.mark.parametrize("count", [1, 5, 63, 64, 65, 255, 256])
def test_a_row_bucket_is_the_smallest_that_suffices(count: int) -> None:
    assert row_bucket(count) == min(bucket for bucket in ROW_BUCKETS if bucket >= count)


@given(st.integers(0, 5000))
def test_a_chunk_bucket_suffices_and_wastes_little(count: int) -> None:
    bucket = chunk_bucket(count)
    assert bucket >= count
    assert bucket % CHUNK_BUCKETS[0] == 0
    assert bucket - count < 128 or count <= 0
    assert chunk_bucket(bucket) == bucket


@given(st.integers(1, 600), st.integers(1, 300), st.integers(1, 700))
def test_a_page_bucket_suffices_as_far_as_there_are_pages(count: int, members: int, most: int) -> None:
    bucket = page_bucket(min(count, most), members, most)
    assert min(count, most) <= bucket <= most
    assert page_bucket(bucket, members, most) == bucket or bucket == most


def test_page_buckets_are_few() -> None:
    for members in (1, 8):
        buckets = sorted({page_bucket(count, members, 512) for count in range(1, 513)})
        assert len(buckets) <= 15
        assert all(larger <= 2 * smaller for smaller, larger in pairwise(buckets))


def test_powers_of_two() -> None:
    assert [power_of_two(count) for count in (0, 1, 2, 3, 4, 5, 64, 65)] == [1, 1, 2, 4, 4, 8, 64, 128]
