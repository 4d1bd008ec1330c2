"""GET /metrics in Prometheus' text form or in OpenMetrics'; it needs no key"""

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST as TEXT
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS

from specdec.server.routes import get
from specdec.server.service import SERVICE

_OPENMETRICS = "application/openmetrics-text"
_END = b"# EOF"  # of OpenMetrics


async def _metrics(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    found = await service.engine.metrics(openmetrics=_OPENMETRICS in request.headers.get("Accept", ""))
    text = _with_vllm_names(found.text) if service.vllm_metrics else found.text
    return web.Response(body=text, headers={"Content-Type": OPENMETRICS if found.openmetrics else TEXT})


def _with_vllm_names(text: bytes) -> bytes:
    """The same again for tools that know vLLM's names alone; ours are the same behind the prefix."""
    lines = text.splitlines()
    end = [lines.pop()] if lines and lines[-1] == _END else []
    again = [line.replace(b"specdec:", b"vllm:", 1) for line in lines if b"specdec:" in line]
    return b"\n".join([*lines, *again, *end, b""])


routes = [get("/metrics", _metrics)]
