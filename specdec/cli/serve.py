"""`specdec serve`: a model over an OpenAI-compatible API."""

import errno
import functools
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from specdec.cli import info
from specdec.cli.keys import keys
from specdec.cli.options import takes_engine
from specdec.cli.origins import origins
from specdec.cli.progress import RichProgress
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.logs import LOG_FORMATS, LOG_LEVELS, set_up
from specdec.server.limits import MOST_WAITING

_DRAIN_SECONDS = 8.0  # `docker stop` kills after 10, Kubernetes after 30
_PORT_TAKEN = "Port {port} of {host} is in use by another program; choose another one with --port."


@takes_engine()
def serve(
    config: EngineConfig,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Ask clients for this bearer key; several with commas, who then share nothing.",
            envvar="SPECDEC_API_KEY",
            show_envvar=True,
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with such keys, one in each line.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in the API.")] = None,
    allowed_origins: Annotated[
        str, typer.Option(help="Origins of web pages that may call the server, with commas or as a JSON list; * for all.")
    ] = "",
    vllm_metrics: Annotated[bool, typer.Option("--vllm-metrics", help="Give metrics under vLLM's names too.")] = False,
    max_queued_requests: Annotated[
        int, typer.Option(help="Requests that may wait beside those that run; more get HTTP 429.", min=1)
    ] = MOST_WAITING,
    log_level: Annotated[str, typer.Option(help=f"{', '.join(LOG_LEVELS)}.")] = "info",
    log_format: Annotated[str, typer.Option(help="text, or json: an object in each line.")] = "text",
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds that running requests have to end after the first signal.", min=0)
    ] = _DRAIN_SECONDS,
) -> None:
    """Serve a model over an OpenAI-compatible API."""
    log = functools.partial(set_up, one_of("log_level", log_level, LOG_LEVELS), one_of("log_format", log_format, LOG_FORMATS))
    log()
    check_port(host, port)
    options = {
        "api_keys": keys(api_key, api_key_file),
        "allowed_origins": origins(allowed_origins),
        "vllm_metrics": vllm_metrics,
        "max_queued_requests": max_queued_requests,
    }
    raise typer.Exit(_serve(config, log, host, port, served_model_name, shutdown_timeout, options))


def one_of(name: str, given: str, allowed: Sequence[str]) -> str:
    """The word in lower case. ConfigError where it is none of those."""
    if given.lower() not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {given!r}.")
    return given.lower()


def check_port(host: str, port: int) -> None:
    """Find out before minutes of loading. ConfigError where nobody can listen there."""
    with _explained_address(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


def _serve(
    config: EngineConfig,
    log: Callable[[], None],
    host: str,
    port: int,
    served_model_name: str | None,
    drain_seconds: float,
    options: dict[str, Any],
) -> int:
    """The engine in a process of its own, HTTP in this one, which has no need of torch. options: of `app_for`."""
    from specdec.server.app import app_for  # brings aiohttp, which --help should not wait for
    from specdec.server.app import serve as listen
    from specdec.server.process import EngineEndedError, EngineProcess, build_engine

    # as the first process of a container, this one would not hear SIGTERM without a handler
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
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
                greeting = _greeting(host, port, name, bool(options["api_keys"]))
                listen(app, host, port, functools.partial(show, greeting), drain_seconds)
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
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    reachable = f"[{reachable.strip('[]')}]" if ":" in reachable else reachable  # an IPv6 address
    key = ' -H "Authorization: Bearer $SPECDEC_API_KEY"' if with_key else ""
    return (
        f"Serving {name} at http://{reachable}:{port}/v1   (Ctrl-C ends it)\n"
        f"Try: curl http://{reachable}:{port}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f"""  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""
    )
