"""The bodies of requests as they come over the wire: their type, their encoding, their size, their time."""

import asyncio
import zlib

from aiohttp import web

from specdec.server.errors import MAX_BODY_BYTES, ApiError, too_large

_SECONDS = 60.0  # for a whole body; the time is nginx's `client_body_timeout`
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def read_body(request: web.Request) -> bytes:
    """The JSON of a request, decompressed.

    Other types are refused: pages of other sites may send them without asking first.

    Raises:
        ApiError: 415 for another type or encoding, 400 where it is not what it says to be, 408, 413.
    """
    if "Content-Type" in request.headers and not _is_json(request.content_type):
        message = f"The body's type is {request.content_type}; send JSON, as 'Content-Type: application/json'."
        raise ApiError(415, message, code="unsupported_media_type")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower() or "identity"
    if encoding != "identity" and encoding not in _WINDOWS:
        message = f"The body's encoding {encoding!r} is not supported; send it as it is, or with gzip or deflate."
        raise ApiError(415, message, code="unsupported_encoding", headers={"Accept-Encoding": "gzip, deflate"})
    try:
        async with asyncio.timeout(_SECONDS):
            raw = await request.read()
    except TimeoutError as error:
        raise ApiError(408, f"The body did not arrive within {_SECONDS:g} seconds.", code="request_timeout") from error
    return raw if encoding == "identity" else _decompressed(raw, encoding)


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _decompressed(raw: bytes, encoding: str) -> bytes:
    decoder = zlib.decompressobj(_WINDOWS[encoding])
    try:
        body = decoder.decompress(raw, MAX_BODY_BYTES)
    except zlib.error as error:
        raise ApiError(400, f"The body is not {encoding}, as its header says: {error}.", code="invalid_encoding") from error
    if decoder.unconsumed_tail:
        raise too_large()
    if not decoder.eof:
        raise ApiError(400, f"The body's {encoding} ends too early.", code="invalid_encoding")
    return body
