"""GET /v1/models and /v1/models/{model}"""

from typing import Any

from aiohttp import web

from specdec.server.routes import get
from specdec.server.service import SERVICE, Service


async def _list(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [_describe(request.app[SERVICE])]})


async def _retrieve(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    service.check_model(request.match_info["model"])
    return web.json_response(_describe(service))


def _describe(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "specdec",
        "root": service.info.model_name,
        "max_model_len": service.info.max_model_len,
    }


routes = [get("/v1/models", _list), get("/v1/models/{model:.+?}", _retrieve)]  # names may have slashes
