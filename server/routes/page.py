"""GET /: a small page that says what is served and how to call it"""

from aiohttp import web

from specdec.server.page import page
from specdec.server.routes import get
from specdec.server.service import SERVICE

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"
)


async def _show(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    text = page(service.model_name, service.info, f"{request.scheme}://{request.host}")
    return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": _POLICY})


routes = [get("/", _show)]
