"""When requests are sent, and which stretch of a run is measured."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

_OPEN_LANES = 16  # in flight where an open loop has to be given a number


class Traffic(Protocol):
    """A way for requests to come."""

    @property
    def name(self) -> str:
        """As tables show it."""
        ...

    @property
    def lanes(self) -> int:
        """Requests in flight, or a guess at them."""
        ...

    def due(self, number: int, ended: int, now: float) -> float | None:
        """When request `number` was to be sent; None if that is not yet. Seconds from the start of the run."""
        ...

    def next_due(self, number: int) -> float | None:
        """When request `number` is to be sent; None if that depends on others."""
        ...


@dataclass(frozen=True, slots=True)
class Closed:
    """`concurrency` requests in flight, until `total` were sent (None: always)."""

    concurrency: int
    total: int | None = None

    @property
    def name(self) -> str:
        return f"{self.concurrency} in flight"

    @property
    def lanes(self) -> int:
        return self.concurrency

    def due(self, number: int, ended: int, now: float) -> float | None:
        return now if number - ended < self.concurrency and number != self.total else None

    def next_due(self, number: int) -> float | None:  # noqa: ARG002 (the protocol's)
        return None


@dataclass(slots=True)
class Open:
    """Poisson arrivals of `rate` requests a second, whatever has ended. The same seed gives the same times."""

    rate: float
    seed: int = 0
    _times: list[float] = field(default_factory=list)
    _source: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        self._source = poisson_times(self.rate, self.seed)

    @property
    def name(self) -> str:
        return f"{self.rate:g} a second"

    @property
    def lanes(self) -> int:
        return _OPEN_LANES

    def due(self, number: int, ended: int, now: float) -> float | None:  # noqa: ARG002 (the protocol's)
        time = self.next_due(number)
        return time if time <= now else None

    def next_due(self, number: int) -> float:
        while len(self._times) <= number:
            self._times.append(next(self._source))
        return self._times[number]


def poisson_times(rate: float, seed: int) -> Iterator[float]:
    """Arrival times of a Poisson process of `rate` events a second, in seconds from its start, without end."""
    draw, now = random.Random(seed), 0.0
    while True:
        now += draw.expovariate(rate)
        yield now


@dataclass(frozen=True, slots=True)
class Limits:
    """warm_up: requests that end before the measured stretch begins. It ends when `requests` more have, or after `seconds`."""

    warm_up: int
    requests: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """The measured stretch: after `start`, up to and with `end`, in seconds of the run's clock."""

    start: float
    end: float

    def __contains__(self, moment: float) -> bool:
        return self.start < moment <= self.end

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Session:
    """One run: says which requests are due and notes when the measured stretch begins and ends.

    Args:
        available: requests that can be sent; when an open loop has used them up, the stretch ends.
    """

    def __init__(self, traffic: Traffic, limits: Limits, available: int) -> None:
        self._traffic = traffic
        self._limits = limits
        self._available = available
        self._sent = 0
        self._ended = 0
        self._ended_before = 0  # when the measured stretch began
        self._began = 0.0
        self._start: float | None = None
        self._end: float | None = None
        self.exhausted = False  # requests were due that nobody had prepared

    def begin(self, now: float) -> None:
        """Start the clock."""
        self._began = now
        if self._limits.warm_up == 0:
            self._start = now

    @property
    def over(self) -> bool:
        """Whether the measured stretch has ended, or never will begin."""
        return self._end is not None or self.exhausted

    @property
    def window(self) -> Window | None:
        """The measured stretch; None where requests ran out before the warm-up had ended."""
        return Window(self._start, self._end) if self._start is not None and self._end is not None else None

    def due(self, now: float) -> list[float]:
        """When the requests that are to be sent now were due; each is counted as sent."""
        found = []
        while (due := self._traffic.due(self._sent, self._ended, now - self._began)) is not None:
            if self._sent == self._available:
                self.exhausted = True
                break
            self._sent += 1
            found.append(due + self._began)
        return found

    def idle(self, now: float) -> float | None:
        """Seconds until the next request is due; None if that depends on others."""
        due = self._traffic.next_due(self._sent)
        return None if due is None else max(0.0, due + self._began - now)

    def see(self, now: float, ended: int) -> None:
        """Take in that `ended` requests have ended by now."""
        self._ended = ended
        if self._start is None:
            if ended >= self._limits.warm_up:
                self._start, self._ended_before = now, ended
        elif self._end is None and (self._enough(ended) or self._late(now) or self.exhausted):
            self._end = now

    def _enough(self, ended: int) -> bool:
        return ended - self._ended_before >= self._limits.requests

    def _late(self, now: float) -> bool:
        assert self._start is not None, "the stretch has begun"
        return self._limits.seconds is not None and now - self._start >= self._limits.seconds
