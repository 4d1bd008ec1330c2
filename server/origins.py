"""Which web pages may call the server. Browsers say whose page asks; without a rule any page could spend the owner's compute.

A page of the server itself may always. Preflights need no key, since browsers send none with them.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from specdec.server.errors import ApiError
from specdec.server.headers import EXPOSED

_ALL = "*"
_KNOWN_SECONDS = "600"  # that a browser need not ask again; browsers cap it between 600 and 86,400


class Origins:
    """The rule for pages. allowed: their origins, or `*` for all."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what other pages ask; answer OPTIONS."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self._allows(origin) and not _is_own(origin, request):
            message = f"Pages of {origin[:200]} may not call this server; its owner allows them with --allowed-origins."
            raise ApiError(403, message, code="origin_not_allowed")
        if request.method != hdrs.METH_OPTIONS:
            return await handler(request)
        problem = request.match_info.http_exception
        if not isinstance(problem, web.HTTPMethodNotAllowed):
            return await handler(request)
        methods = ", ".join(sorted({*problem.allowed_methods, hdrs.METH_OPTIONS}))
        return web.Response(status=204, headers={hdrs.ALLOW: methods} | self._preflight(request, methods))

    async def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell the browser that the page may read; see `aiohttp.web.Application.on_response_prepare`."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and self._allows(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = _ALL if _ALL in self._allowed else origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
        if self._allowed and _ALL not in self._allowed:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)

    def _allows(self, origin: str) -> bool:
        return _ALL in self._allowed or origin.lower() in self._allowed

    def _preflight(self, request: web.Request, methods: str) -> dict[str, str]:
        if hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return {}
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "Authorization, Content-Type")
        return {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: methods,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: wanted,
            hdrs.ACCESS_CONTROL_MAX_AGE: _KNOWN_SECONDS,
            "Access-Control-Allow-Private-Network": "true",  # for pages of the internet that ask servers at home
        }


def _is_own(origin: str, request: web.Request) -> bool:
    return urlsplit(origin).netloc.lower() == request.host.lower()
