"""The bearer key."""

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from specdec.server.errors import ApiError
from specdec.server.paths import tidy

# probes, scrapers and people who look at the page carry no key
_OPEN_PATHS = frozenset({"/", "/health", "/ready", "/ping", "/metrics"})


def require_key(api_key: str) -> Middleware:
    """A middleware that refuses calls without `Authorization: Bearer <api_key>`."""
    expected = f"Bearer {api_key}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if tidy(request.path) not in _OPEN_PATHS and not hmac.compare_digest(given, expected):
            raise ApiError(
                401,
                "The API key is wrong or missing; send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return await handler(request)

    return check
