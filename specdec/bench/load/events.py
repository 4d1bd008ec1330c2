"""What a streamed answer's events tell about time, read without parsing them: a busy client would be slower than the server."""

import json
from typing import Any

_TAIL_BYTES = 8192  # of a stream: more than its last events, the usage among them, take
_LAST_EVENTS = 3  # how it ended, the usage, [DONE]
_EVENT, _NEXT_EVENT, _BETWEEN, _DONE = b"data: ", b"\ndata: ", b"\n\n", b"data: [DONE]"


class EventLog:
    """Counts the events of one stream as they come. Line breaks inside of an event are escaped, so others end lines."""

    def __init__(self) -> None:
        self._arrivals: list[tuple[float, int]] = []
        self._rest = b""  # the beginning of an event
        self._tail = b""

    def add(self, now: float, received: bytes) -> None:
        """Take in what came at `now`."""
        whole, between, self._rest = (self._rest + received).rpartition(_BETWEEN)
        if count := whole.count(_NEXT_EVENT) + whole.startswith(_EVENT):
            self._arrivals.append((now, count))
        self._tail = self._tail[-_TAIL_BYTES:] + whole + between

    def arrivals(self, num_leading: int) -> list[tuple[float, int]]:
        """When events with text came, and how many. The first arrival is kept where it brought none: the answer began with it.

        Args:
            num_leading: events before the first with text.
        """
        found: list[tuple[float, int]] = []
        position, last = 0, sum(count for _, count in self._arrivals) - _LAST_EVENTS
        for now, count in self._arrivals:
            texts = min(position + count, last) - max(position, num_leading)
            if texts > 0 or not found:
                found.append((now, max(texts, 0)))
            position += count
        return found

    def usage(self) -> dict[str, Any]:
        """The event that tells tokens and speculation.

        Raises:
            ValueError: the stream ended without it.
        """
        for event in reversed(self._tail.split(_BETWEEN)):
            if event.startswith(_EVENT) and event != _DONE:
                found: dict[str, Any] = json.loads(event.removeprefix(_EVENT))
                if found.get("usage") is not None:
                    return found
        raise ValueError("the stream ended without its usage")
