"""One run of steady traffic: what is sent, and what answers it."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Protocol

from specdec.bench.load.measures import Measures, Trace, measure
from specdec.bench.load.odd import Odd, changed
from specdec.bench.load.prompts import Question
from specdec.bench.load.traffic import Closed, Limits, Session, Traffic
from specdec.errors import ConfigError
from specdec.request import Request, SamplingParams, SpeculationParams


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to the engine, and the message that a chat endpoint is sent for it (None: the prompt's tokens are sent)."""

    request: Request
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Asks:
    """The requests of a run in the order that they are sent, and those that take turns beside them, one at a time."""

    ordinary: Sequence[Ask]
    odd: Sequence[Ask] = ()


class OddLane:
    """Whose turn it is beside the ordinary requests: the next one once the last has ended.

    ended: where the traces of those that have ended are put.
    """

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.ended: list[Trace] = []
        self._asks = cycle(asks)
        self._wanted = bool(asks)
        self._sent = 0

    def due(self) -> Ask | None:
        """The request to send now, if any."""
        if not self._wanted or self._sent > len(self.ended):
            return None
        self._sent += 1
        return next(self._asks)


Drive = Callable[[Asks, Session], list[Trace]]  # sends until the session is over; gives the traces of the ordinary requests


class Contender(Protocol):
    """Something that answers many requests at once. speculation: what its requests say of it."""

    name: str
    drafters: tuple[str, ...]
    speculation: SpeculationParams

    def ready(self) -> AbstractContextManager[Drive]:
        """It runs until the context ends, and has learned from no answer of an earlier run."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What each contender is given in one run.

    questions: enough of them for the limits. seen: whether each is answered once before, unmeasured. odd: what the requests
    beside the ordinary ones ask for; None: there are none. odd_questions: their prompts, which take turns.
    """

    traffic: Traffic
    limits: Limits
    questions: Sequence[Question]
    sampling: SamplingParams
    seen: bool = False
    odd: Odd | None = None
    odd_questions: Sequence[Question] = ()


def perform(contender: Contender, plan: Plan) -> Measures:
    """Run, and measure the steady part.

    Raises:
        ConfigError: an open loop brings more than is answered, so that no steady part begins.
        RoundError: a request failed.
    """
    ordinary = asks_for(plan.questions, plan.sampling, contender.speculation)
    asks = Asks(staggered(ordinary, plan.traffic.lanes) if isinstance(plan.traffic, Closed) else ordinary)
    if plan.odd is not None:
        speculation = plan.odd.speculation or contender.speculation
        odd = asks_for(plan.odd_questions, changed(plan.sampling, plan.odd), speculation, name="odd")
        asks = replace(asks, odd=odd)
    session = Session(plan.traffic, plan.limits, len(ordinary))
    with contender.ready() as drive:
        if plan.seen:
            before = asks_for(plan.questions, plan.sampling, contender.speculation, first_seed=len(ordinary))
            drive(Asks(before), Session(Closed(plan.traffic.lanes, len(before)), Limits(0, len(before)), len(before)))
        started, cpu_started = time.perf_counter(), time.process_time()
        traces = drive(asks, session)
        cpu_share = (time.process_time() - cpu_started) / (time.perf_counter() - started)
    if session.window is None:
        sent, warm_up = len(ordinary), plan.limits.warm_up
        raise ConfigError(f"All {sent} requests were sent before {warm_up} had ended; lower --rate or --warm-up.")
    return replace(measure(traces, session.window), cpu_share=cpu_share)


def asks_for(
    questions: Sequence[Question],
    sampling: SamplingParams,
    speculation: SpeculationParams,
    name: str = "load",
    first_seed: int = 0,
) -> list[Ask]:
    """One request for each prompt, each with a seed of its own."""
    return [
        Ask(
            Request(
                request_id=f"{name} {number}",
                prompt_ids=question.prompt_ids,
                sampling=replace(sampling, seed=first_seed + number),
                speculation=speculation,
            ),
            question.message,
        )
        for number, question in enumerate(questions)
    ]


def staggered(asks: Sequence[Ask], lanes: int) -> list[Ask]:
    """The first `lanes` answers are cut to lengths that rise evenly, so that they end one after another, as later ones will."""
    whole = asks[0].request.sampling.max_tokens
    return [_cut(ask, -(-whole * (number + 1) // lanes)) if number < lanes else ask for number, ask in enumerate(asks)]


def _cut(ask: Ask, tokens: int) -> Ask:
    sampling = ask.request.sampling
    shorter = replace(sampling, max_tokens=tokens, min_tokens=min(tokens, sampling.min_tokens))
    return replace(ask, request=replace(ask.request, sampling=shorter))
