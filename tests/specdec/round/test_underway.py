"""Rounds underway: in order, with what they took."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from specdec.round.plan import RoundPlan, RoundShape
from specdec.round.underway import RoundsUnderway, Underway


@dataclass
class Clock:
    """Ticks when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Event:
    """A CUDA event of a device that finishes when it is waited for, a second after the round before."""

    clock: Clock
    at: float = 0.0
    done: bool = True

    def query(self) -> bool:
        return self.done

    def record(self) -> None:
        self.done = False

    def synchronize(self) -> None:
        self.clock.now += 1.0
        self.at, self.done = self.clock.now, True

    def elapsed_time(self, other: "Event") -> float:
        return (other.at - self.at) * 1e3


@dataclass
class Device:
    """Rounds on a device whose clock is the test's."""

    clock: Clock = field(default_factory=Clock)
    turn: int = 0

    def __post_init__(self) -> None:
        self.rounds = RoundsUnderway(4, on_gpu=False)
        self.rounds._events = [Event(self.clock) for _ in range(4)]  # type: ignore[misc]

    def enqueue(self, drafting: bool, recorded: bool = True) -> None:
        self.turn += 1
        self.rounds.add(entry(self.turn, drafting), recorded)
        self.rounds.launched(0.0)


def entry(turn: int, drafting: bool = False) -> Underway:
    none = np.zeros(1, np.int64)
    plan = RoundPlan(slots=none, firsts=none, chunks=none, nodes=none + 1, pages=1, odds=np.ones(1))
    return Underway(turn, plan, RoundShape(1, 0, 1, 1, 1, 0, 1, drafting=drafting), np.zeros(1, np.int64))


def test_without_a_gpu_a_round_takes_what_its_launch_takes() -> None:
    rounds = RoundsUnderway(4, on_gpu=False)
    for turn, seconds in ((1, 0.5), (2, 0.25)):
        rounds.add(entry(turn), recorded=False)
        rounds.launched(seconds)
    assert len(rounds) == 2
    assert [(found.turn, found.seconds) for found in (rounds.wait(), rounds.wait())] == [(1, 0.5), (2, 0.25)]
    rounds.add(entry(3), recorded=False)
    rounds.clear()
    assert not len(rounds)


def test_only_a_round_that_the_device_began_at_once_tells_what_it_took() -> None:
    device = Device()
    device.enqueue(False)
    device.enqueue(False)  # while the first was underway
    first = device.rounds.wait()
    device.clock.now += 5.0
    second = device.rounds.wait()
    device.enqueue(False)
    last = device.rounds.wait()
    assert first.seconds is None
    assert second.seconds == 6.0
    assert last.seconds is None

    device.enqueue(False)
    assert isinstance(device.rounds._events[device.turn % 4], Event)
    device.rounds._events[device.turn % 4].done = True  # type: ignore[attr-defined]  # the device is faster than the host
    device.enqueue(False)
    device.rounds.wait()
    assert device.rounds.wait().seconds is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_round_takes_what_lies_between_two_events() -> None:
    rounds = RoundsUnderway(4, on_gpu=True)
    work = torch.randn(4096, 4096, device="cuda")
    for turn in range(1, 4):
        rounds.add(entry(turn), recorded=True)
        for _ in range(10):
            work = torch.tanh(work @ work)
        rounds.launched(0.0)
    seconds = [rounds.wait().seconds for _ in range(3)]
    assert seconds[0] is None
    assert seconds[1] is not None
    assert seconds[2] is not None
    assert 1e-5 < seconds[2] < 1.0
