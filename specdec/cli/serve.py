"""`specdec serve`: a model over an OpenAI-compatible API."""

import errno
import gc
import logging
import socket
from typing import Annotated

import typer
from rich.console import Console

from specdec.cli import info
from specdec.cli.options import takes_engine
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
    log_level: Annotated[str, typer.Option(help=f"{', '.join(_LOG_LEVELS)}.")] = "info",
) -> None:
    """Serve a model over an OpenAI-compatible API."""
    if log_level not in _LOG_LEVELS:
        raise ConfigError(f"log_level must be one of {', '.join(_LOG_LEVELS)}, not {log_level!r}.")
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    check_port(host, port)
    raise typer.Exit(_serve(config, host, port, api_key, served_model_name))


def check_port(host: str, port: int) -> None:
    """Find out before minutes of loading. ConfigError where nobody can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _listening_error(error, host, port) from error


def _serve(config: EngineConfig, host: str, port: int, api_key: str | None, served_model_name: str | None) -> int:
    from specdec.assemble import build  # brings torch, which --help should not wait for
    from specdec.server.app import create_app
    from specdec.server.app import serve as listen

    console = Console(stderr=True)
    assembled = build(config, RichProgress(console))
    name = served_model_name or assembled.model_name
    gc.collect()
    gc.freeze()  # what is there stays; to look through it again and again would hold up all streams for a tenth of a second
    console.print(info.banner(assembled), highlight=False, markup=False, soft_wrap=True)

    def greet() -> None:
        console.print(_greeting(host, port, name, api_key is not None), highlight=False, markup=False, soft_wrap=True)

    try:
        return listen(create_app(assembled, api_key=api_key, served_model_name=name), host, port, greet)
    except OSError as error:
        raise _listening_error(error, host, port) from error
    finally:
        gc.unfreeze()  # some libraries complain of what is not freed at the end


def _listening_error(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(_PORT_TAKEN.format(host=host, port=port))
    return ConfigError(f"Cannot listen on {host} port {port}: {error.strerror or error}.")


def _greeting(host: str, port: int, name: str, with_key: bool) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    key = ' -H "Authorization: Bearer $SPECDEC_API_KEY"' if with_key else ""
    return (
        f"Serving {name} at http://{reachable}:{port}/v1   (Ctrl-C ends it)\n"
        f"Try: curl http://{reachable}:{port}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f"""  -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""
    )
