"""GET /metrics in Prometheus' text form; it needs no key"""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from specdec.server.service import SERVICE


async def _metrics(request: web.Request) -> web.Response:
    registry = request.app[SERVICE].assembled.engine.metrics.registry
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


routes = [web.get("/metrics", _metrics)]
