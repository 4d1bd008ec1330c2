"""`specdec serve` as a process of its own, while it is measured."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from specdec.bench.load.client import Address
from specdec.errors import ConfigError

_START_SECONDS = 1800.0  # large models load and record for minutes
_END_SECONDS = 30.0
_LOOK_SECONDS, _ANSWER_SECONDS = 0.1, 10.0
_LOG_LINES = 15  # that are shown where it does not start


def find(url: str, api_key: str | None) -> tuple[Address, int]:
    """A running server: its address, and the most tokens of a prompt and its answer.

    Raises:
        ConfigError: there is none, or it does not let us in.
    """
    base = url.rstrip("/").removesuffix("/v1")
    try:
        (model,) = _get(f"{base}/v1/models", api_key)["data"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"There is no specdec server to be asked at {base}: {error}.") from error
    return Address(base, model["id"], api_key), model["max_model_len"]


@contextmanager
def started(command: Sequence[str], api_key: str | None) -> Generator[Address, None, None]:
    """A server that runs until the context ends.

    Args:
        command: starts it, without its port.

    Raises:
        ConfigError: it did not start; the message has the end of what it said.
    """
    port = _free_port()
    environment = os.environ | ({"SPECDEC_API_KEY": api_key} if api_key is not None else {})
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=environment)
        try:
            _wait(process, f"http://127.0.0.1:{port}", log)
            yield find(f"http://127.0.0.1:{port}", api_key)[0]
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _get(f"{url}/health", None)
        except (OSError, ValueError):
            time.sleep(_LOOK_SECONDS)
        else:
            return
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
    raise ConfigError("The server did not start:\n" + "\n".join(said))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _get(url: str, api_key: str | None) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"} if api_key is not None else {})
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
        found: dict[str, Any] = json.load(response)
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port
