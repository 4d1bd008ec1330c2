"""What every response carries: the request's id, and which of its fields had no effect."""

import re
import secrets
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler

from specdec.logs import REQUEST_ID as LOGGED_ID
from specdec.server.tolerance import Told

REQUEST_ID, IGNORED = "X-Request-Id", "x-specdec-ignored"
EXPOSED = f"{REQUEST_ID}, {IGNORED}"

_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ID_KEY, _IGNORED_KEY = web.RequestKey("id", str), web.RequestKey("ignored", str)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A request keeps the id that its client gives it, and gets one where it has none."""
    given = request.headers.get(REQUEST_ID, "")
    request[_ID_KEY] = given if _ID.fullmatch(given) else secrets.token_hex(16)
    LOGGED_ID.set(request[_ID_KEY])
    return await handler(request)


def tell_ignored(request: web.Request, told: Told, names: Iterable[str]) -> None:
    """The response to this request will say which fields had no effect."""
    if header := told.header(names):
        request[_IGNORED_KEY] = header


async def mark(request: web.Request, response: web.StreamResponse) -> None:
    """Put it all into a response that is about to be sent; see `aiohttp.web.Application.on_response_prepare`."""
    if _ID_KEY in request:
        response.headers[REQUEST_ID] = request[_ID_KEY]
    if _IGNORED_KEY in request:
        response.headers[IGNORED] = request[_IGNORED_KEY]
