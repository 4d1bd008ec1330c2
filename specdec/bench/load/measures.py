"""What a run's steady state comes to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.bench.load.traffic import Window
from specdec.bench.statistics import Tail, tail


@dataclass(kw_only=True, slots=True)
class Trace:
    """One request as its client saw it, in seconds of the run's clock.

    arrivals: when something came, and how many tokens (from an engine) or events of a stream (from a server) it was.
    tokens_per_unit: tokens of each of these.
    """

    due: float
    prompt_tokens: int
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    tokens_per_unit: float = 1.0
    ended: float | None = None  # None: aborted when the run was over
    cached_tokens: int = 0
    steps: int = 0
    accepted: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """Of one run's measured stretch. None: nothing to tell from.

    requests: that ended in it. first_token_seconds: from when a request was due. between_tokens_seconds: of each token
    after its answer's first delta; the tokens of a delta share the time since the delta before.
    """

    seconds: float
    requests: int
    output_tokens_per_second: float
    requests_per_second: float
    prompt_tokens_per_second: float
    first_token_seconds_p50: float | None
    first_token_seconds_p99: float | None
    between_tokens_seconds_p50: float | None
    between_tokens_seconds_p99: float | None
    acceptance_length: float | None
    cached_prompt_share: float | None
    mean_in_flight: float
    cpu_share: float | None = None  # CPU seconds of this process per second: of the engine, or else of the client


def measure(traces: Sequence[Trace], window: Window) -> Measures:
    """Count what happened in the window: whatever came in it, of requests that began before or ended after it too.

    In a steady state that has no bias: a request counts for what it does in the window, and as ended or begun where it does
    so in it.
    """
    first = _tail_of_first_tokens(traces, window)
    between = _tail_between_tokens(traces, window)
    begun = [trace for trace in traces if trace.arrivals and trace.arrivals[0][0] in window]
    ended = [trace for trace in traces if trace.ended is not None and trace.ended in window]
    prompt_tokens = sum(trace.prompt_tokens for trace in begun)
    steps = sum(trace.steps for trace in ended)
    read = sum(trace.prompt_tokens for trace in ended)
    tokens = sum(count * trace.tokens_per_unit for trace in traces for moment, count in trace.arrivals if moment in window)
    in_flight = sum(_overlap(trace, window) for trace in traces)
    return Measures(
        seconds=window.seconds,
        requests=len(ended),
        output_tokens_per_second=tokens / window.seconds,
        requests_per_second=len(ended) / window.seconds,
        prompt_tokens_per_second=prompt_tokens / window.seconds,
        first_token_seconds_p50=first.p50 if first else None,
        first_token_seconds_p99=first.p99 if first else None,
        between_tokens_seconds_p50=between.p50 if between else None,
        between_tokens_seconds_p99=between.p99 if between else None,
        acceptance_length=1.0 + sum(trace.accepted for trace in ended) / steps if steps else None,
        cached_prompt_share=sum(trace.cached_tokens for trace in ended) / read if read else None,
        mean_in_flight=in_flight / window.seconds,
    )


def _tail_of_first_tokens(traces: Sequence[Trace], window: Window) -> Tail | None:
    return tail([trace.arrivals[0][0] - trace.due for trace in traces if trace.arrivals and trace.arrivals[0][0] in window])


def _tail_between_tokens(traces: Sequence[Trace], window: Window) -> Tail | None:
    gaps: list[float] = []
    counts: list[int] = []
    for trace in traces:
        for (before, _), (moment, count) in zip(trace.arrivals, trace.arrivals[1:], strict=False):
            if count and moment in window:
                gaps.append((moment - before) / (count * trace.tokens_per_unit))
                counts.append(count)
    return tail(gaps, counts)


def _overlap(trace: Trace, window: Window) -> float:
    """Seconds of the window in which the request was in flight."""
    end = window.end if trace.ended is None else min(trace.ended, window.end)
    return max(0.0, end - max(trace.due, window.start))
