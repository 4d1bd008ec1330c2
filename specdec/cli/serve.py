"""`specdec serve`: a model over an OpenAI-compatible API."""

import errno
import functools
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from specdec.cli import info
from specdec.cli.options import takes_engine
from specdec.cli.origins import origins
from specdec.cli.progress import RichProgress
from specdec.config import EngineConfig
from specdec.errors import ConfigError

_LOG_LEVELS = ("debug", "info", "warning", "error")
_PORT_TAKEN = "Port {port} of {host} is in use by another program; choose another one with --port."


@takes_engine()
def serve(
    config: EngineConfig,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="Ask clients for this bearer key.", envvar="SPECDEC_API_KEY", show_envvar=True)
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in the API.")] = None,
    allowed_origins: Annotated[
        str, typer.Option(help="Origins of web pages that may call the server, with commas or as a JSON list; * for all.")
    ] = "",
    vllm_metrics: Annotated[bool, typer.Option("--vllm-metrics", help="Give metrics under vLLM's names too.")] = False,
    log_level: Annotated[str, typer.Option(help=f"{', '.join(_LOG_LEVELS)}.")] = "info",
) -> None:
    """Serve a model over an OpenAI-compatible API."""
    if log_level not in _LOG_LEVELS:
        raise ConfigError(f"log_level must be one of {', '.join(_LOG_LEVELS)}, not {log_level!r}.")
    log = functools.partial(logging.basicConfig, level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    log()
    check_port(host, port)
    options = {"api_key": api_key, "allowed_origins": origins(allowed_origins), "vllm_metrics": vllm_metrics}
    raise typer.Exit(_serve(config, log, host, port, served_model_name, options))


def check_port(host: str, port: int) -> None:
    """Find out before minutes of loading. ConfigError where nobody can listen there."""
    with _explained_address(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


def _serve(
    config: EngineConfig, log: Callable[[], None], host: str, port: int, served_model_name: str | None, options: dict[str, Any]
) -> int:
    """The engine in a process of its own, HTTP in this one, which has no need of torch. options: of `app_for`."""
    from specdec.server.app import app_for  # brings aiohttp, which --help should not wait for
    from specdec.server.app import serve as listen
    from specdec.server.process import EngineEndedError, EngineProcess, build_engine

    console = Console(stderr=True)
    show = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    with EngineProcess(functools.partial(build_engine, config), info.banner, log) as engine:
        try:
            show(engine.load(RichProgress(console)))
            name = served_model_name or engine.info.model_name
            if given := engine.info.sampling_defaults.given():
                said = ", ".join(f"{field} {value}" for field, value in given.items())
                show(f"The model's own sampling defaults: {said}   (--generation-config none leaves them out)")
            app = app_for(engine, served_model_name=name, **options)
            with _explained_address(host, port):
                greeting = _greeting(host, port, name, options["api_key"] is not None)
                listen(app, host, port, functools.partial(show, greeting))
        except EngineEndedError as error:
            print(f"specdec: {error}", file=sys.stderr)
            return 1
    return 0


@contextmanager
def _explained_address(host: str, port: int) -> Iterator[None]:
    """ConfigError where nobody can listen there."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(_PORT_TAKEN.format(host=host, port=port)) from error
        raise ConfigError(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from error


def _greeting(host: str, port: int, name: str, with_key: bool) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    key = ' -H "Authorization: Bearer $SPECDEC_API_KEY"' if with_key else ""
    return (
        f"Serving {name} at http://{reachable}:{port}/v1   (Ctrl-C ends it)\n"
        f"Try: curl http://{reachable}:{port}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f"""  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""
    )
