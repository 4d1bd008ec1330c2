"""The host's part of a round: what is counted, and what is not."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specdec import assemble
from specdec.bench import host_time
from specdec.bench.host_time import DRAFT, ELSE, FORWARD, HOST, SETTLE, WAITING, Stopwatch, summarise, watched_of
from specdec.bench.synthetic import shape_request
from specdec.config import EngineConfig
from specdec.engine.engine import Engine


class Work:
    """Functions that call one another, and a clock that they move on."""

    now = 0

    def outer(self) -> int:
        self.now += 20
        return self.inner() + self.inner()

    def inner(self) -> int:
        self.now += 10
        return 1

    def fail(self) -> None:
        self.inner()
        raise KeyError("x")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    monkeypatch.setattr(host_time, "time", SimpleNamespace(thread_time=lambda: work.now))
    return work


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[..., Path]) -> Engine:
    model = str(tiny_checkpoint("llama"))
    return assemble.build(EngineConfig(model=model, dtype="float32", device="cpu", drafters=("ngram",), cache_gb=0.05)).engine


def test_a_function_counts_without_the_timed_ones_that_it_calls(work: Work) -> None:
    watch = Stopwatch()
    with watch.watching([("outer", work, "outer"), ("inner", work, "inner")]):
        assert work.outer() == 2
    assert watch.take() == {"outer": 20, "inner": 20}
    assert not watch.take()
    work.outer()
    assert not watch.take(), "functions are their own again"


def test_a_function_that_fails_is_counted_too(work: Work) -> None:
    watch = Stopwatch()
    with watch.watching([("fail", work, "fail"), ("inner", work, "inner")]), pytest.raises(KeyError):
        work.fail()
    assert watch.take() == {"fail": 0, "inner": 10}
    with watch.watching([("inner", work, "inner")]):
        work.inner()
    assert watch.take() == {"inner": 10}


def test_medians_are_over_rounds() -> None:
    steps = [{ELSE: 1.0, FORWARD: 10.0}, {ELSE: 3.0, FORWARD: 20.0, SETTLE: 1.0}, {ELSE: 2.0, FORWARD: 90.0, SETTLE: 2.0}]
    found = summarise(list(zip(steps, (12.0, 25.0, 99.0), strict=True)))
    assert (found.rounds, found.busy, found.whole) == (3, 4.0, 25.0)
    assert found.host == {SETTLE: 1.0, ELSE: 2.0}
    assert found.device == {FORWARD: 20.0}
    with pytest.raises(ValueError, match="ask for more tokens"):
        summarise([])


def test_a_round_is_counted_whole_and_each_part_once(engine: Engine) -> None:
    requests = [shape_request(f"{i}", 8, 12, i, 200) for i in range(3)]
    started = time.perf_counter()
    found = host_time.measure(engine, requests)
    taken = time.perf_counter() - started
    assert 4 <= found.rounds <= 12
    assert DRAFT in found.device
    assert set(found.host) <= set(HOST)
    assert min(found.host.values()) >= 0
    assert found.rounds * found.whole < 1.5 * taken
    assert not engine.has_work
    assert engine.step.__func__ is Engine.step, "nothing is watched any longer"  # type: ignore[attr-defined]


def test_on_a_gpu_the_host_is_all_but_the_waiting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._round.forward.model, "device", torch.device("cuda"))
    found = watched_of(engine)
    assert {name for name, _, _ in found} == {*HOST, WAITING}
    for _, owner, attribute in found:
        assert callable(getattr(owner, attribute))
