"""Rounds are recorded when their shape comes first, on a GPU alone; the oldest recordings make room."""

import gc
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from specdec.round import graphs
from specdec.round.graphs import Graphs
from specdec.round.plan import RoundShape


def shape(members: int) -> RoundShape:
    return RoundShape(
        members=members,
        chunk=0,
        trees=members,
        nodes=1,
        pages=4,
        chunk_members=0,
        tree_members=members,
    )


def test_a_cpu_launches_every_round() -> None:
    launched: list[int] = []
    runs = Graphs(lambda s: launched.append(s.members), torch.device("cpu"))
    for members in (1, 2, 1, 1):
        runs.launch(shape(members))
    assert launched == [1, 2, 1, 1]
    assert shape(1) not in runs


@pytest.fixture
def counted() -> Tensor:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.zeros(8, dtype=torch.int64, device="cuda")


@pytest.mark.gpu
def test_a_gpu_records_a_shape_that_comes(counted: Tensor) -> None:
    launched: list[int] = []

    def launch(s: RoundShape) -> None:
        launched.append(s.members)
        counted[s.members] += 1

    runs = Graphs(launch, torch.device("cuda"), lambda s: s.members != 3)
    for members in (1, 2, 1, 1, 1, 3, 3, 2):
        runs.launch(shape(members))
    assert counted.tolist() == [0, 4, 2, 2, 0, 0, 0, 0]
    assert launched == [1, 2, 3, 3], "a recording is launched once, and a shape that is not worth one each time"
    assert shape(1) in runs
    assert shape(3) not in runs
    assert gc.isenabled()


@pytest.mark.gpu
def test_the_recording_used_longest_ago_makes_room(counted: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)

    def launch(s: RoundShape) -> None:
        counted[s.members] += 1

    runs = Graphs(launch, torch.device("cuda"))
    for members in (1, 1, 2, 2, 1, 3, 3):
        runs.launch(shape(members))
    assert [members for members in (1, 2, 3) if shape(members) in runs] == [1, 3]
    runs.launch(shape(2))
    assert counted.tolist()[:4] == [0, 3, 3, 2]


@pytest.mark.gpu
def test_a_recording_is_timed_by_its_replays(counted: Tensor) -> None:
    def launch(s: RoundShape) -> None:
        counted[s.members] += 1

    runs = Graphs(launch, torch.device("cuda"))
    runs.launch(shape(1))
    runs.record(shape(1))
    before = int(counted[1])
    assert 0 < runs.seconds(shape(1), nullcontext) < 0.1
    assert int(counted[1]) > before
