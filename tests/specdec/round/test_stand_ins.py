"""A shape without a recording runs as a larger one; what is wanted often gets its own, as far as time allows."""

import itertools
from typing import Any

import pytest
import torch

from specdec.round.graphs import Graphs
from specdec.round.plan import MOST_TREE_ROWS, ROW_BUCKETS, RoundShape, chunk_bucket, power_of_two
from specdec.round.sample.draw import Nucleus
from specdec.round.stand_ins import StandIns


class Replay:
    def __init__(self, runs: "Recorded", shape: RoundShape) -> None:
        self._runs, self._shape = runs, shape

    def replay(self) -> None:
        self._runs.replayed.append(self._shape)


class Recorded(Graphs):
    """As on a GPU, but nothing is computed."""

    def __init__(self) -> None:
        super().__init__(lambda shape: self.launched.append(shape), torch.device("cpu"), lambda shape: shape.chunk <= 1024)
        self._on_gpu = True
        self.launched: list[RoundShape] = []
        self.replayed: list[RoundShape] = []

    def record(self, shape: RoundShape) -> None:
        self._graphs[shape] = Replay(self, shape)  # type: ignore[assignment]
        self.version += 1


def shape(members: int, trees: int, nodes: int, pages: int = 4, chunk: int = 0, **fields: Any) -> RoundShape:
    return RoundShape(members, chunk, trees, nodes, pages, int(chunk > 0), members if trees else 0, **fields)


@pytest.fixture
def graphs() -> Recorded:
    return Recorded()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def stand_ins(graphs: Recorded, now: list[float]) -> StandIns:
    return StandIns(graphs, most_members=96, most_pages=128, most_chunk=1024, clock=lambda: now[0])


def always(_: RoundShape) -> bool:
    return True


def run(stand_ins: StandIns, graphs: Recorded, wanted: RoundShape) -> RoundShape:
    found = stand_ins.choose(wanted, always)
    graphs.launch(found)
    return found


def holds(larger: RoundShape, wanted: RoundShape) -> bool:
    fields = ("members", "chunk", "trees", "nodes", "pages")
    return all(getattr(larger, name) >= getattr(wanted, name) for name in fields)


def test_a_first_recording_has_room_for_others(stand_ins: StandIns, graphs: Recorded) -> None:
    first = run(stand_ins, graphs, shape(6, 12, 4, drafting=True))
    assert holds(first, shape(8, 16, 8, 8, drafting=True))
    assert run(stand_ins, graphs, shape(6, 12, 4, drafting=True)) == first
    for other in (shape(8, 12, 2, drafting=True), shape(6, 16, 8, 6, drafting=True), shape(8, 16, 4, 8, drafting=True)):
        assert run(stand_ins, graphs, other) == first
    assert set(graphs.replayed) == {first}
    assert not graphs.launched


def test_all_that_a_round_does_is_the_same(stand_ins: StandIns, graphs: Recorded) -> None:
    for _ in range(2):
        run(stand_ins, graphs, shape(8, 16, 4))
    for other in (
        shape(8, 16, 4, drafting=True),
        shape(8, 16, 4, chunk=64),
        shape(8, 16, 4, edited=True),
        shape(8, 0, 1),
        shape(8, 16, 4, scored=True),
    ):
        found = stand_ins.choose(other, always)
        assert found._replace(members=8, trees=16, nodes=4, pages=4, chunk=0) == other._replace(trees=16, nodes=4, chunk=0)
        assert (found.chunk > 0, found.trees > 0) == (other.chunk > 0, other.trees > 0)


def test_what_is_much_larger_does_not_stand_in(stand_ins: StandIns, graphs: Recorded) -> None:
    large = shape(64, 256, 16, 64, drafting=True)
    graphs.record(large)
    for small in (
        shape(8, 256, 64, 64, drafting=True),
        shape(64, 64, 2, 64, drafting=True),
        shape(64, 256, 8, 8, drafting=True),
    ):
        assert stand_ins.choose(small, always) != large
    assert stand_ins.choose(shape(48, 192, 8, 32, drafting=True), always) == large


def test_the_smallest_that_fits_stands_in(stand_ins: StandIns, graphs: Recorded) -> None:
    for nodes, trees in ((16, 32), (4, 24), (8, 24)):
        graphs.record(shape(8, trees, nodes, drafting=True))
    wanted = shape(8, 16, 4, drafting=True)
    assert stand_ins.choose(wanted, always) == shape(8, 24, 4, drafting=True)
    assert stand_ins.choose(wanted, lambda larger: larger.nodes > 4) == shape(8, 24, 8, drafting=True)
    assert stand_ins.choose(wanted, lambda larger: larger.trees > 24) == shape(8, 32, 16, drafting=True)


def test_what_is_wanted_often_gets_its_own_recording_when_time_allows(
    stand_ins: StandIns, graphs: Recorded, now: list[float]
) -> None:
    wanted, other = shape(8, 12, 4, drafting=True), shape(8, 16, 4, 8, drafting=True)
    for _ in range(200):
        larger = run(stand_ins, graphs, wanted)
    assert larger != wanted, "no time has passed"
    now[0] = 1.0
    assert run(stand_ins, graphs, wanted) == wanted
    stand_ins.took(wanted, 0.03)
    assert wanted in graphs
    for _ in range(200):
        assert run(stand_ins, graphs, other) == larger, "what the first took is not made up for"
    now[0] = 4.0
    assert run(stand_ins, graphs, other) == other


def test_what_is_never_recorded_runs_as_it_is(stand_ins: StandIns, graphs: Recorded) -> None:
    long = shape(8, 8, 1, chunk=2048)
    assert stand_ins.choose(long, always) == long
    alone = StandIns(Graphs(print, torch.device("cpu")), most_members=96, most_pages=128, most_chunk=1024)
    assert alone.choose(shape(6, 12, 4), always) == shape(6, 12, 4)


@pytest.mark.parametrize("drafting", [False, True])
def test_every_shape_finds_room_within_the_limits(drafting: bool) -> None:
    """Of a round of so many members and trees; each gets a new engine, so that nothing is recorded."""
    for members, trees in itertools.product([m for m in ROW_BUCKETS if m <= 96], ROW_BUCKETS):
        for pages, chunk in ((1, 0), (12, 64), (100, 768), (128, 1024)):
            nodes = min(power_of_two(-(-trees // members)), 64)
            wanted = shape(members, trees, nodes, pages, chunk_bucket(chunk), drafting=drafting)
            chosen = StandIns(Recorded(), most_members=96, most_pages=128, most_chunk=1024).choose(wanted, always)
            assert holds(chosen, wanted)
            assert chosen.members <= 96
            assert chosen.pages <= 128
            assert chosen.trees <= MOST_TREE_ROWS
            assert chosen.trees in ROW_BUCKETS
            assert chosen.nodes <= 64
            assert chosen.chunk == chunk_bucket(chosen.chunk) <= 1024


def test_what_traffic_brings_most_finds_room_that_is_recorded_at_start_up(stand_ins: StandIns, graphs: Recorded) -> None:
    for alone in (shape(1, 1, 1), *(shape(1, rows, rows, drafting=True) for rows in (1, 2, 4, 8))):
        for found in list(stand_ins.usual(alone)):
            assert found not in graphs
            graphs.record(found)
    recorded = set(graphs.shapes())
    for members, rows, chunk in itertools.product([m for m in ROW_BUCKETS if 1 < m <= 96], (1, 1.4, 3, 5), (0, 64, 192)):
        if members * rows <= 128 and (rows < 5 or not chunk):
            trees = next(bucket for bucket in ROW_BUCKETS if bucket >= members * rows)
            wanted = shape(members, trees, 1 if rows == 1 else 4, pages=12, chunk=chunk, drafting=rows > 1)
            assert run(stand_ins, graphs, wanted) in recorded, wanted


@pytest.mark.parametrize("field", ["truncated", "scored_rows"])
def test_rows_with_filters_or_scores_have_room_in_a_stand_in(graphs: Recorded, stand_ins: StandIns, field: str) -> None:
    kind: dict[str, Any] = {"nucleus": Nucleus.NARROW} if field == "truncated" else {"scored": True}

    def some(rows: int) -> RoundShape:
        return shape(12, 24, 4, **kind, **{field: rows})

    roomy = stand_ins.choose(some(2), always)
    assert (roomy.trees, getattr(roomy, field)) == (32, 4)
    graphs.launch(roomy)
    assert stand_ins.choose(some(4), always) == roomy
    assert getattr(stand_ins.choose(some(8), always), field) == 16, "more than that is room for"
    assert stand_ins.choose(some(2), lambda larger: larger != roomy) == some(2)
    others = stand_ins.choose(shape(12, 24, 4), always)
    assert (others.nucleus, others.scored) == (Nucleus.NONE, False)


def test_at_start_up_all_rows_have_filters_or_none(stand_ins: StandIns) -> None:
    usual = list(stand_ins.usual(shape(1, 2, 2, nucleus=Nucleus.NARROW, truncated=2)))
    assert all(found.truncated == found.trees for found in usual)
    assert all(found.truncated == 0 for found in stand_ins.usual(shape(1, 2, 2)))
