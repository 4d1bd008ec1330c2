"""One file per endpoint, or for a few that belong together; each has a `routes` table that `specdec.server.app` adds."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from specdec.server.paths import loose

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def get(path: str, handler: Handler) -> web.RouteDef:
    """GET and HEAD on a path."""
    return web.get(loose(path), handler)


def post(path: str, handler: Handler) -> web.RouteDef:
    """POST on a path."""
    return web.post(loose(path), handler)
