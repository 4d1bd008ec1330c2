"""GET /health, /ready and /ping, which need no key, and GET /version"""

from aiohttp import web

from specdec import __version__
from specdec.server.routes import get, post
from specdec.server.service import SERVICE


async def _health(request: web.Request) -> web.Response:
    """200 while the engine runs, 503 once it has stopped: whether to start the server anew."""
    engine = request.app[SERVICE].engine
    if not engine.healthy:
        return web.json_response({"status": "engine stopped"}, status=503)
    return web.json_response({"status": "ok", "num_running": engine.num_running, "num_waiting": engine.num_waiting})


async def _ready(request: web.Request) -> web.Response:
    """200 while requests are taken, 503 before and after: whether to send some."""
    engine = request.app[SERVICE].engine
    if not engine.ready:
        return web.json_response({"status": "shutting down" if engine.healthy else "engine stopped"}, status=503)
    return web.json_response({"status": "ready"})


async def _version(_request: web.Request) -> web.Response:
    return web.json_response({"version": __version__})


routes = [
    get("/health", _health),
    get("/ready", _ready),
    get("/ping", _health),  # SageMaker's word for it
    post("/ping", _health),
    get("/version", _version),
]
