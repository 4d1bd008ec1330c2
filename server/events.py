"""Server-sent events: the wire form of a streamed response."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream:
    """A streamed response. It begins with its first write, so that an error before it still gets a status of its own."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=_HEADERS)

    async def send(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        """One event per payload, all in one write."""
        await self._write("".join(f"data: {json.dumps(payload, separators=(',', ':'))}\n\n" for payload in payloads))

    async def keep_alive(self) -> None:
        """A comment, which clients skip and proxies count as life."""
        await self._write(": keep-alive\n\n")

    async def done(self) -> web.StreamResponse:
        """The mark of a complete stream, and its end."""
        await self._write("data: [DONE]\n\n")
        return await self.end()

    async def end(self) -> web.StreamResponse:
        """The end of the response."""
        await self._response.write_eof()
        return self._response

    async def _write(self, text: str) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
            self._request[_OPEN] = self
        await self._response.write(text.encode())


def open_events(request: web.Request) -> EventStream | None:
    """The stream that this request's response has begun, if any."""
    return request.get(_OPEN)


_OPEN = web.RequestKey("events", EventStream)
