"""The rounds underway: enqueued, their outcomes not read yet, and what they took."""

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
    done: torch.cuda.Event | None = None  # since when its outcome can be read
    before: torch.cuda.Event | None = None  # the same of the round that it follows on the device at once


class RoundsUnderway:
    """The oldest first.

    Args:
        kept: more rounds than are ever underway.
        on_gpu: whether the device works beside the host.
    """

    def __init__(self, kept: int, on_gpu: bool) -> None:
        self._rounds: deque[Underway] = deque()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(kept)] if on_gpu else []  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._rounds)

    def add(self, entry: Underway, recorded: bool) -> None:
        """A round is to be launched. recorded: the host need not record it."""
        last = self._rounds[-1] if self._rounds else None
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
            entry.done.synchronize()
            entry.seconds = entry.before.elapsed_time(entry.done) / 1e3 if entry.before is not None else None
        return entry

    def clear(self) -> None:
        """None is underway any more."""
        self._rounds.clear()
