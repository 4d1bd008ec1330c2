"""Server-sent events: the wire form of a streamed response."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_STALL_SECONDS = 60.0  # a client that reads nothing for so long is given up; the time is nginx's `send_timeout`
_AT_ONCE_BYTES = 1 << 16  # asyncio's transports take as much before they make a writer wait
_encode = json.JSONEncoder(separators=(",", ":")).encode


def event(payload: Mapping[str, Any]) -> str:
    """An event as it is sent, in ASCII."""
    return f"data: {_encode(payload)}\n\n"


class EventStream:
    """A streamed response. It begins with its first write, so that an error before it still gets a status of its own."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=_HEADERS)

    async def send(self, events: str) -> None:
        """Send events in one write; waits while the client reads more slowly than that.

        Raises:
            ConnectionResetError: the client has left, or stopped reading long ago.
        """
        if not self._response.prepared:
            await self._response.prepare(self._request)
            self._request[_OPEN] = self
        data = events.encode()
        if self._takes(len(data)):
            await self._response.write(data)
        else:
            await self._write_slowly(data)

    async def keep_alive(self) -> None:
        """A comment, which clients skip and proxies count as life."""
        await self.send(": keep-alive\n\n")

    async def done(self) -> web.StreamResponse:
        """The mark of a complete stream, and its end."""
        await self.send("data: [DONE]\n\n")
        return await self.end()

    async def end(self) -> web.StreamResponse:
        """The end of the response."""
        await self._response.write_eof()
        return self._response

    def _takes(self, size: int) -> bool:
        """Whether so many bytes can be written without waiting for the client."""
        transport = self._request.transport
        return transport is None or (size < _AT_ONCE_BYTES and not transport.get_write_buffer_size())

    async def _write_slowly(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(_STALL_SECONDS):
                await self._response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("The client stopped reading.") from None


def open_events(request: web.Request) -> EventStream | None:
    """The stream that this request's response has begun, if any."""
    return request.get(_OPEN)


_OPEN = web.RequestKey("events", EventStream)
