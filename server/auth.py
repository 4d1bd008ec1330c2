"""The bearer keys, and who shares what with whom.

Callers with one of several keys are a group of their own: what is kept of their texts serves nobody else, and no
earlier answer is copied from, see `specdec.request.Request.cache_salt`. Where there is one key, or none, all are one group.
"""

import hashlib
import hmac
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from specdec.server.errors import ApiError
from specdec.server.paths import tidy

_GROUP = web.RequestKey("group", str)
# probes, scrapers and people who look at the page carry no key
_OPEN_PATHS = frozenset({"/", "/health", "/ready", "/ping", "/metrics"})


def require_key(api_keys: Sequence[str]) -> Middleware:
    """A middleware that refuses calls without `Authorization: Bearer KEY` for one of the keys."""
    groups = {f"Bearer {key}".encode(): hashlib.sha256(key.encode()).hexdigest() for key in api_keys}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        # each is compared, so that the time says nothing of which
        found = [group for expected, group in groups.items() if hmac.compare_digest(given, expected)]
        if tidy(request.path) not in _OPEN_PATHS and not found:
            raise ApiError(
                401,
                "The API key is wrong or missing; send it as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if found and len(groups) > 1:
            request[_GROUP] = found[0]
        return await handler(request)

    return check


def salted(request: web.Request, salt: str) -> str:
    """A call's own salt, apart from those of other groups."""
    group = request.get(_GROUP, "")
    return f"{group}/{salt}" if group else salt
