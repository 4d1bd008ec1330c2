"""GET /metrics in Prometheus' text form; it needs no key"""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from specdec.server.routes import get
from specdec.server.service import SERVICE


async def _metrics(request: web.Request) -> web.Response:
    text = await request.app[SERVICE].engine.metrics()
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


routes = [get("/metrics", _metrics)]
