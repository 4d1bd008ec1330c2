"""The HTTP application, and how it listens and ends.

On SIGINT or SIGTERM the server takes no more requests (HTTP 503) and gives those that run time to end. What is cut then ends
with an error: streams with an event of it and no `[DONE]`, whole answers with HTTP 503, the engine after its round. A second
signal ends the process at once. When the engine ends by itself, what runs fails with HTTP 500 and the server ends too.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web

from specdec.server import headers
from specdec.server.auth import require_key
from specdec.server.client import EngineClient
from specdec.server.errors import MAX_BODY_BYTES, shape_errors
from specdec.server.hosts import EngineHost, EngineThread
from specdec.server.limits import MOST_WAITING
from specdec.server.origins import Origins
from specdec.server.process import EngineEndedError
from specdec.server.record import AccessLines
from specdec.server.routes import chat, completions, health, metrics, models, page, tokenize
from specdec.server.service import SERVICE, Service

if TYPE_CHECKING:
    from specdec.assemble import Assembled

_log = logging.getLogger(__name__)
_SHUTDOWN_SECONDS = 10.0  # for handlers to send what is left
# a connection that asks nothing for so long, or never ends its header, is closed; the time is that of nginx's headers
_SILENT_SECONDS = 60.0
_HOST = web.AppKey("host", EngineHost)


def create_app(assembled: "Assembled", **options: Any) -> web.Application:
    """The application that serves `assembled` from a thread of this process: see `app_for`; nobody else may step its engine."""
    return app_for(EngineThread(assembled), **options)


def app_for(
    host: EngineHost,
    *,
    api_keys: Sequence[str] = (),
    served_model_name: str | None = None,
    allowed_origins: Sequence[str] = (),
    vllm_metrics: bool = False,
    max_queued_requests: int = MOST_WAITING,
) -> web.Application:
    """The application that serves the engine of `host`, which runs from its start to its end; `make_runner` runs it.

    Args:
        host: see `specdec.server.process.EngineProcess`.
        api_keys: one of them is asked of clients as a bearer key, except for probes, /metrics and the page at /; those with
            different ones share nothing.
        served_model_name: the model's name in the API; its own if not given.
        allowed_origins: of web pages that may call it; `*` for all.
        vllm_metrics: whether metrics are told under vLLM's names too.
        max_queued_requests: that may wait beside as many as can run, each of a call's prompts times n counted.
    """
    origins = Origins(allowed_origins)
    middlewares = [headers.identify, shape_errors, origins.check] + ([require_key(api_keys)] if api_keys else [])
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(headers.mark)
    app.on_response_prepare.append(origins.mark)
    app[_HOST] = host
    app[SERVICE] = Service(
        info=host.info,
        engine=EngineClient(host.info.max_batch + max_queued_requests),
        model_name=served_model_name or host.info.model_name,
        created=int(time.time()),
        vllm_metrics=vllm_metrics,
    )
    for module in (page, models, chat, completions, tokenize, health, metrics):
        app.add_routes(module.routes)
    app.cleanup_ctx.append(_connected)
    app.on_shutdown.append(_shut_down)
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """Runs `app` so that a handler is cancelled when its client leaves; bodies are decompressed by `specdec.server.bodies`."""
    return web.AppRunner(
        app,
        handler_cancellation=True,
        shutdown_timeout=_SHUTDOWN_SECONDS,
        keepalive_timeout=_SILENT_SECONDS,
        auto_decompress=False,
        access_log_class=AccessLines,
    )


def serve(
    app: web.Application, host: str, port: int, on_ready: Callable[[], None] = lambda: None, drain_seconds: float = 0.0
) -> None:
    """Listen until SIGINT or SIGTERM.

    Args:
        on_ready: called once clients can connect.
        drain_seconds: that running requests have after the signal.

    Raises:
        OSError: the address is taken or not ours.
        EngineEndedError: the engine has ended by itself.
    """
    asyncio.run(_listen(app, host, port, on_ready, drain_seconds))
    if app[SERVICE].engine.lost:
        raise EngineEndedError(app[_HOST].join())


async def _listen(app: web.Application, host: str, port: int, on_ready: Callable[[], None], drain_seconds: float) -> None:
    stop = asyncio.Event()
    app[SERVICE].engine.on_loss = stop.set
    runner = make_runner(app)
    _on_signals(stop)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        on_ready()
        await stop.wait()
        await app[SERVICE].engine.drain(drain_seconds)
    finally:
        await runner.cleanup()


def _on_signals(stop: asyncio.Event) -> None:
    """The first signal sets `stop`, the second ends the process."""

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        _log.info("Shutting down once running requests have ended; a second %s ends the process at once.", number.name)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)


async def _connected(app: web.Application) -> AsyncIterator[None]:
    engine, host = app[SERVICE].engine, app[_HOST]
    await engine.connect(host.connect())
    yield
    await engine.disconnect()
    await asyncio.to_thread(host.join)


async def _shut_down(app: web.Application) -> None:
    app[SERVICE].engine.cut()
