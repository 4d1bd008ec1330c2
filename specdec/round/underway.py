"""The rounds underway: enqueued, their outcomes not read yet; and what they take, on the device and on the host."""

import time
from collections import deque
from dataclasses import dataclass

import torch

from specdec.arrays import IntArray
from specdec.round.plan import RoundPlan, RoundShape


@dataclass(slots=True)
class Underway:
    """A round that was enqueued. firsts: the first tree row of each member. The seconds are as in `Outcome`."""

    turn: int
    plan: RoundPlan
    shape: RoundShape
    firsts: IntArray
    seconds: float | None = None
    drafting_seconds: float | None = None
    host_seconds: float | None = None
    done: torch.cuda.Event | None = None  # since when its outcome can be read
    before: torch.cuda.Event | None = None  # the same of the round that it follows on the device at once


class RoundsUnderway:
    """The oldest first.

    What the host takes from one round to the next is known once as many rounds of one kind, with or without drafters, followed
    each other as that involves: it settles one, and plans and enqueues another.

    Args:
        kept: more rounds than are ever underway.
        on_gpu: whether the device works beside the host.
    """

    def __init__(self, kept: int, on_gpu: bool) -> None:
        self._rounds: deque[Underway] = deque()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(kept)] if on_gpu else []  # type: ignore[no-untyped-call]
        self._since = 0.0  # when the last outcome was there
        self._alike = 0  # rounds of the last kind, one behind the other
        self._drafting: bool | None = None

    def __len__(self) -> int:
        return len(self._rounds)

    def add(self, entry: Underway, recorded: bool) -> None:
        """A round is to be launched. recorded: the host need not record it."""
        last = self._rounds[-1] if self._rounds else None
        if last is None or not recorded or entry.shape.drafting != self._drafting:
            self._alike, self._drafting = 0, entry.shape.drafting
        self._alike += 1
        if self._events:
            entry.done = self._events[entry.turn % len(self._events)]
            if last is not None and last.done is not None and recorded and not last.done.query():  # type: ignore[no-untyped-call]
                entry.before = last.done
        self._rounds.append(entry)

    def launched(self, seconds: float) -> None:
        """The last one that was added, which took the host so long; that is the round itself where there is no GPU."""
        entry = self._rounds[-1]
        if entry.done is not None:
            entry.done.record()
        else:
            entry.seconds = seconds

    def wait(self) -> Underway:
        """The oldest, once its outcome can be read."""
        entry = self._rounds.popleft()
        if entry.done is not None:
            if self._rounds and self._alike >= len(self._rounds) + 2:
                entry.host_seconds = time.perf_counter() - self._since
            entry.done.synchronize()
            self._since = time.perf_counter()
            entry.seconds = entry.before.elapsed_time(entry.done) / 1e3 if entry.before is not None else None
        return entry

    def clear(self) -> None:
        """None is underway any more."""
        self._rounds.clear()
