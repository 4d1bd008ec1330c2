"""What the host does in a round, step by step; where the host is the device too, also what the round does, stage by stage.

`Engine.step` is timed while all streams decode. What it calls is replaced by functions that look at the clock, so nothing is
counted twice; that costs about a microsecond a call. The clock is the CPU time of the thread that steps, so what else runs on
the machine does not show. Where rounds run on a GPU, the host's part is all but the time for which it waits for the GPU.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from specdec.engine import engine as engine_module
from specdec.engine.engine import Engine
from specdec.request import Request, RequestOutput
from specdec.round import round as round_module
from specdec.round.accept import shared_noise

SCHEDULE, PLAN, ENTER, ENQUEUE, READ, SETTLE, ELSE = "schedule", "plan", "enter, leave", "enqueue", "read", "settle", "all else"
HOST = (SCHEDULE, PLAN, ENTER, ENQUEUE, READ, SETTLE, ELSE)
DRAFT, LAY_OUT, FORWARD, DRAW, ACCEPT = "draft", "lay out rows", "forward", "edit and draw", "accept"
OBSERVE, COMMIT, TELL, REST, WAITING = "observe", "commit", "tell", "all else of the round", "waiting for the device"
DEVICE = (DRAFT, LAY_OUT, FORWARD, DRAW, ACCEPT, OBSERVE, COMMIT, TELL, REST, WAITING)

Watched = tuple[str, Any, str]  # what it counts as, whose, and the attribute's name


@dataclass(frozen=True, slots=True)
class HostTime:
    """Medians over the rounds in which all streams decoded, seconds. host, device: CPU time by step, of those that there were.
    busy: the host's part of a round. whole: what a round took by the clock on the wall."""

    rounds: int
    host: dict[str, float]
    device: dict[str, float]
    busy: float
    whole: float


class Stopwatch:
    """Adds up the CPU time of functions, each without those timed ones that it calls. seconds: by what they count as."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []  # of each function that runs, what those that it called took

    @contextmanager
    def watching(self, watched: Iterable[Watched]) -> Iterator[None]:
        """The functions are timed while the block runs."""
        with ExitStack() as stack:
            for name, owner, attribute in watched:
                timed = self._timed(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            yield

    def take(self) -> dict[str, float]:
        """The seconds so far; the next ones are counted anew."""
        found, self.seconds = self.seconds, defaultdict(float)
        return found

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            self._inside.append(0.0)
            started = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                taken = time.thread_time() - started
                self.seconds[name] += taken - self._inside.pop()
                if self._inside:
                    self._inside[-1] += taken

        return run


def watched_of(engine: Engine) -> list[Watched]:
    """Everything that is told apart in a step of an engine."""
    round_ = engine._round
    found: list[Watched] = [
        (ELSE, engine, "step"),
        (SCHEDULE, engine._scheduler, "schedule"),
        (PLAN, engine_module, "plan_round"),
        (ENTER, round_, "enter"),
        (ENTER, round_, "leave"),
        (ENQUEUE, round_, "enqueue"),
        (READ, round_, "collect"),
        (SETTLE, engine, "_settle"),
    ]
    if round_.forward.model.device.type == "cuda":
        return [*found, (WAITING, torch.cuda.Event, "synchronize")]
    return [
        *found,
        (REST, round_.graphs, "launch"),
        (DRAFT, round_.drafting, "trees"),
        (LAY_OUT, round_module, "lay_out"),
        (FORWARD, round_.forward.model, "forward"),
        (FORWARD, round_.forward.model, "logits"),
        (DRAW, round_module, "edit_logits"),
        (DRAW, shared_noise, "draw"),
        (ACCEPT, round_._rule, "accept"),
        *((OBSERVE, drafter, "observe") for drafter in round_.drafting.drafters),
        (COMMIT, round_.caches, "move"),
        (COMMIT, round_module, "commit"),
        (TELL, round_._scores, "tell"),
    ]


def measure(engine: Engine, requests: Sequence[Request]) -> HostTime:
    """Serve requests that all last for the same number of rounds."""
    watch = Stopwatch()
    with watch.watching(watched_of(engine)):
        return summarise(list(_steady_steps(engine, requests, watch)))


def summarise(rounds: Sequence[tuple[dict[str, float], float]]) -> HostTime:
    """Of rounds, each as `Stopwatch.take` gives it and with what it took in all.

    Raises:
        ValueError: there is none.
    """
    if not rounds:
        raise ValueError("In no round did all streams decode: ask for more tokens, or for fewer streams.")
    steps = [step for step, _ in rounds]
    names = [name for name in (*HOST, *DEVICE) if any(name in step for step in steps)]
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    return HostTime(
        rounds=len(steps),
        host={name: seconds for name, seconds in medians.items() if name in HOST},
        device={name: seconds for name, seconds in medians.items() if name in DEVICE},
        busy=statistics.median(sum(step.get(name, 0.0) for name in HOST) for step in steps),
        whole=statistics.median(whole for _, whole in rounds),
    )


def _steady_steps(engine: Engine, requests: Sequence[Request], watch: Stopwatch) -> Iterator[tuple[dict[str, float], float]]:
    """From the first token of the last stream to start, to the end of the first to end."""
    started: set[str] = set()
    ended: set[str] = set()

    def sink(output: RequestOutput) -> None:
        if output.token_ids:
            started.add(output.request_id)
        if output.finish_reason is not None:
            ended.add(output.request_id)

    for request in requests:
        engine.submit(request, sink)
    while engine.has_work:
        steady = len(started) == len(requests)
        watch.take()
        begun = time.perf_counter()
        engine.step()
        if steady and not ended:
            yield watch.take(), time.perf_counter() - begun
