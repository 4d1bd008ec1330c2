"""GET /health, which needs no key, and GET /version"""

from aiohttp import web

from specdec import __version__
from specdec.server.service import SERVICE


async def _health(request: web.Request) -> web.Response:
    """200 while requests can be served, 503 once the engine has stopped."""
    engine = request.app[SERVICE].engine
    if not engine.healthy:
        return web.json_response({"status": "engine stopped"}, status=503)
    return web.json_response({"status": "ok", "num_running": engine.num_running, "num_waiting": engine.num_waiting})


async def _version(_request: web.Request) -> web.Response:
    return web.json_response({"version": __version__})


routes = [web.get("/health", _health), web.get("/version", _version)]
