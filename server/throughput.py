"""A line of the log every few seconds while an engine has work: how fast it is, and what waits."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdec.engine.engine import Engine

_SECONDS = 10.0

_log = logging.getLogger(__name__)


class ThroughputLines:
    """Args:
    engine: whose.
    seconds: between two lines.
    clock: seconds, monotonic.
    """

    def __init__(self, engine: "Engine", seconds: float = _SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._seconds = seconds
        self._clock = clock
        self._since = clock()
        self._counted = engine.metrics.totals

    def look(self) -> None:
        """Write the line that is due, if any; called after every round, and now and then without one."""
        now = self._clock()
        if now - self._since < self._seconds:
            return
        totals, status = self._engine.metrics.totals, self._engine.status()
        before, passed = self._counted, now - self._since
        self._counted, self._since = totals, now
        tokens, prompts, passes = (new - old for new, old in zip(totals, before, strict=True))
        if not (tokens or prompts or status.num_running or status.num_waiting):
            return
        _log.info(
            "%.1f tokens/s (acceptance length %.2f), prompts %.1f tokens/s; %d running, %d waiting; %.0f %% of the cache held.",
            tokens / passed,
            tokens / passes if passes else 0.0,
            prompts / passed,
            status.num_running,
            status.num_waiting,
            100 * status.pages_used / status.pages_total,
        )
