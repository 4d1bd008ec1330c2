"""When rounds of the device loop become graphs, with graphs that only note what happens to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch

from specdec import loop_graphs
from specdec.loop_graphs import LoopGraphs, RoundKey

KEYS = [RoundKey(1, w, 4, lookup=True, truncated=False, biased=False, penalised=False, scored=False) for w in (1, 2, 3)]


class Graph:
    """What was launched while it was captured, replayed."""

    log: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.captured: list[str] = []

    def replay(self) -> None:
        Graph.log += [f"replay {name}" for name in self.captured]


class Event:
    """Ticks with the replays before it, a millisecond each."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0

    def record(self) -> None:
        self.at = len(Graph.log)

    def elapsed_time(self, end: "Event") -> float:
        return float(end.at - self.at)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> LoopGraphs:
    Graph.log = []

    @contextmanager
    def recording(graph: Graph, _memory: Any) -> Iterator[None]:
        before = len(Graph.log)
        yield
        graph.captured = [line.removeprefix("launch ") for line in Graph.log[before:]]
        del Graph.log[before:]
        Graph.log += [f"record {name}" for name in graph.captured]

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(loop_graphs, "recording", recording)
    monkeypatch.setattr(loop_graphs, "_MOST_GRAPHS", 2)
    return LoopGraphs(lambda key: Graph.log.append(f"launch {key.width}"), torch.device("cuda"))


def test_a_shape_is_launched_then_recorded_then_replayed(graphs: LoopGraphs) -> None:
    for _ in range(3):
        graphs.launch(KEYS[0])
    assert Graph.log == ["launch 1", "record 1", "replay 1", "replay 1"]
    assert KEYS[0] in graphs
    assert KEYS[1] not in graphs


def test_the_graph_used_longest_ago_makes_room(graphs: LoopGraphs) -> None:
    for key in KEYS[:2]:
        graphs.record(key)
    graphs.launch(KEYS[0])
    graphs.record(KEYS[2])
    assert [key in graphs for key in KEYS] == [True, False, True]


def test_a_round_is_timed_by_replays_that_leave_all_as_it_was(graphs: LoopGraphs) -> None:
    stays: list[int] = []

    @contextmanager
    def staying() -> Iterator[None]:
        stays.append(len(Graph.log))
        yield

    graphs.record(KEYS[1])
    assert graphs.seconds(KEYS[1], staying) == pytest.approx(1e-3)
    assert stays == list(range(1, 9)), "around each replay"
    assert Graph.log[1:] == ["replay 2"] * 8


def test_without_a_gpu_every_round_is_launched() -> None:
    launched: list[RoundKey] = []
    graphs = LoopGraphs(launched.append, torch.device("cpu"))
    for _ in range(3):
        graphs.launch(KEYS[0])
    assert launched == [KEYS[0]] * 3
    assert KEYS[0] not in graphs
