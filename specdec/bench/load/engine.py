"""Steady traffic through an engine in this process, stepped by the thread that submits."""

import gc
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from specdec.bench.load.measures import Trace
from specdec.bench.load.run import Ask, Asks, Drive, OddLane
from specdec.bench.load.traffic import Session
from specdec.engine.sequence import Sink
from specdec.errors import RoundError
from specdec.request import FinishReason, Request, RequestOutput, SpeculationParams

_NAP_SECONDS = 0.0005  # between looks where nothing runs and the next arrival is not due


class Stepped(Protocol):
    """The part of an engine that is needed; see `specdec.engine.engine.Engine`."""

    def submit(self, request: Request, sink: Sink) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def step(self) -> bool: ...

    def forget(self) -> None: ...


class EngineContender:
    """specdec's engine itself.

    Args:
        make: builds the engine.
    """

    def __init__(self, name: str, make: Callable[[], Stepped], drafters: tuple[str, ...]) -> None:
        self.name = name
        self.drafters = drafters
        self.speculation = SpeculationParams()
        self._make = make
        self._engine: Stepped | None = None

    @contextmanager
    def ready(self) -> Generator[Drive, None, None]:
        if self._engine is None:
            gc.collect()  # what an earlier engine held; the next wants the memory
            self._engine = self._make()
        else:
            self._engine.forget()  # the answers of the run before
        gc.collect()
        gc.freeze()  # as `specdec serve` does
        try:
            yield partial(drive, self._engine)
        finally:
            gc.unfreeze()


class _Run:
    """The requests that were sent, and those of them that have ended.

    A round of many sequences calls as many sinks, so these do nothing but note the time and the number of tokens.
    """

    def __init__(self, engine: Stepped, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._running: dict[str, Trace] = {}
        self.failed: str | None = None

    def send(self, ask: Ask, due: float, ended: list[Trace]) -> Trace:
        trace = Trace(due=due, prompt_tokens=len(ask.request.prompt_ids))
        arrivals, clock = trace.arrivals, self._clock

        def sink(output: RequestOutput) -> None:
            if output.token_ids:
                arrivals.append((clock(), len(output.token_ids)))
            if output.finish_reason is not None:
                self._end(trace, output, ended)

        self._running[ask.request.request_id] = trace
        self._engine.submit(ask.request, sink)
        return trace

    def _end(self, trace: Trace, output: RequestOutput, ended: list[Trace]) -> None:
        del self._running[output.request_id]
        if output.finish_reason is FinishReason.ABORT:
            return
        self.failed = self.failed or output.error
        ended.append(trace)
        trace.ended = self._clock()
        trace.cached_tokens = output.num_cached_tokens
        if output.stats is not None:
            trace.steps, trace.accepted = output.stats.num_steps, output.stats.num_accepted_tokens

    def abort(self) -> None:
        """End what still runs."""
        for request_id in list(self._running):
            self._engine.abort(request_id)
        while self._engine.step():
            pass


def drive(engine: Stepped, asks: Asks, session: Session, clock: Callable[[], float] = time.perf_counter) -> list[Trace]:
    """Submit what is due between rounds, until the session is over. See `specdec.bench.load.run.Drive`.

    Raises:
        RoundError: a request failed.
    """
    run, odd, source = _Run(engine, clock), OddLane(asks.odd), iter(asks.ordinary)
    traces: list[Trace] = []
    ended: list[Trace] = []
    session.begin(clock())
    try:
        while not session.over:
            traces += [run.send(next(source), due, ended) for due in session.due(clock())]
            if (ask := odd.due()) is not None:
                run.send(ask, clock(), odd.ended)
            if not engine.step():
                time.sleep(min(session.idle(clock()) or 0.0, _NAP_SECONDS))
            session.see(clock(), len(ended))
            if run.failed is not None:
                raise RoundError(run.failed)
    finally:
        run.abort()
    return traces
