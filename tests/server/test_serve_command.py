"""`specdec serve` and its two processes, a script being the engine: how they begin, how they end, what they leave behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.fake_engine import ANSWER, MODEL

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parent.parent.parent
SECONDS = 30.0  # for anything; only a hang takes as long
COMMAND = """
import signal, sys
from specdec.cli import info
from specdec.cli.app import app
from specdec.server import process
from tests.server import fake_engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
info.banner = fake_engine.banner
process.build_engine = getattr(fake_engine, sys.argv[1])
app(["serve", "fake", "--port", sys.argv[2]])
"""


@dataclass(frozen=True)
class Serving:
    """A running command, first of a process group of its own. `log` is what it wrote to both of its streams."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + SECONDS
        while words not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def ctrl_c(self) -> None:
        """As a terminal sends it: to all processes of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_until_running(self) -> None:
        """Until the engine has a request."""
        deadline = time.monotonic() + SECONDS
        while not json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"))["num_running"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def exit_code(self) -> int:
        return self.process.wait(SECONDS)

    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        (found,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return found

    def ask(self, word: str, **fields: Any) -> Any:
        """The open response to a chat."""
        asked = {"model": MODEL, "messages": [{"role": "user", "content": word}]} | fields
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=SECONDS)


def alive(process: psutil.Process) -> bool:
    """A zombie is not: whoever inherits it need not collect it at once."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def group(leader: int) -> list[psutil.Process]:
    """The processes of a group that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and alive(process):
                found.append(process)
        except ProcessLookupError:
            continue
    return found


@contextmanager
def serving(folder: Path, build: str, **options: str) -> Iterator[Serving]:
    """The command until the block ends, after which none of its processes may be left, however it ended. Unless its options
    say otherwise, what runs at its end has no time."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    log = folder / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-c", COMMAND, build, str(port)]
        given = {"shutdown_timeout": "0"} | options
        environment = os.environ | {f"SPECDEC_{name.upper()}": value for name, value in given.items()}
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=environment, start_new_session=True)
    try:
        yield Serving(process, port, log)
        assert process.wait(SECONDS) is not None
        deadline = time.monotonic() + 10
        while left := group(process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        for left_over in group(process.pid):
            left_over.kill()
        process.wait()


@pytest.fixture
def ready(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, "build") as found:
        found.wait_for("/v1")
        yield found


def test_it_tells_what_it_does_and_ends_on_ctrl_c(ready: Serving) -> None:
    with ready.ask("hello") as response:
        assert json.load(response)["choices"][0]["message"]["content"] == ANSWER
    ready.ctrl_c()
    assert ready.exit_code() == 0
    lines = ready.log.read_text().splitlines()
    assert lines[:2] == ["Making a tokenizer: done", f"A script in place of {MODEL}"]
    assert lines[2] == f"Serving {MODEL} at http://127.0.0.1:{ready.port}/v1   (Ctrl-C ends it)"
    assert "Traceback" not in "\n".join(lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_streams_end_as_they_should_whoever_gets_the_signal(ready: Serving, number: signal.Signals) -> None:
    """Terminals and some supervisors send it to both processes."""
    with ready.ask("stall", stream=True) as response:
        assert b"assistant" in response.readline()
        os.killpg(ready.process.pid, number)
        rest = response.read().decode()
    *_, last = [line.removeprefix("data: ") for line in rest.splitlines() if line]
    assert json.loads(last)["error"]["code"] == "shutting_down", "an answer that was cut does not end as if it were whole"
    assert "[DONE]" not in rest
    assert ready.exit_code() == 0


def test_what_runs_may_end_before_the_server_does(tmp_path: Path) -> None:
    """Meanwhile nobody else is let in."""
    with serving(tmp_path, "build", shutdown_timeout="20") as command:
        command.wait_for("/v1")
        with command.ask("slow", stream=True) as response:
            assert b"assistant" in response.readline()
            os.kill(command.process.pid, signal.SIGTERM)
            command.wait_for("a second SIGTERM ends the process at once")
            with pytest.raises(urllib.error.HTTPError) as refused:
                command.ask("hello")
            assert refused.value.code == 503
            assert json.load(refused.value)["error"]["code"] == "shutting_down"
            rest = response.read().decode()
        assert rest.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"stop"' in rest
        assert command.exit_code() == 0


def test_what_does_not_end_in_time_is_cut(tmp_path: Path) -> None:
    with serving(tmp_path, "build", shutdown_timeout="0.5") as command:
        command.wait_for("/v1")
        with ThreadPoolExecutor() as pool:
            asking = pool.submit(command.ask, "stall")
            command.wait_until_running()
            started = time.monotonic()
            os.kill(command.process.pid, signal.SIGTERM)
            with pytest.raises(urllib.error.HTTPError) as cut:
                asking.result()
            assert cut.value.code == 503
        assert command.exit_code() == 0
        assert 0.4 < time.monotonic() - started < 8


def test_lines_of_the_log_are_objects_where_that_is_asked(tmp_path: Path) -> None:
    with serving(tmp_path, "build", log_format="JSON", log_level="INFO") as command:
        command.wait_for("/v1")
        with command.ask("hello") as response:
            call = response.headers["X-Request-Id"]
            response.read()
        with command.ask("hello", stream=True, n=2) as response:
            response.read()
        with pytest.raises(urllib.error.HTTPError):
            command.ask("hello", stop_token_ids=[9999])
        with socket.create_connection(("127.0.0.1", command.port)) as other:
            other.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            other.recv(100)
        command.ctrl_c()
        assert command.exit_code() == 0
        lines = [json.loads(line) for line in command.log.read_text().splitlines() if line.startswith("{")]
    whole, streamed, refused = [line for line in lines if line["logger"] == "specdec.server.requests"]
    assert (whole["request_id"], whole["outcome"], whole["level"]) == (call, "stop", "info")
    assert whole["message"].startswith(f"stop: {whole['prompt_tokens']} prompt tokens (3 known), {whole['tokens']} tokens in ")
    assert whole["tokens"] > 10
    assert 0 <= whole["first_token_seconds"] <= whole["seconds"]
    assert whole["acceptance_length"] == 1.8
    assert (streamed["choices"], streamed["tokens"]) == (2, 2 * whole["tokens"])
    assert (refused["outcome"], "9999" in refused["error"]) == ("failed", True)
    paths = [(line["path"], line["status"]) for line in lines if line["logger"] == "specdec.server.access"]
    assert ("/v1/chat/completions", 400) in paths
    assert ("/v1/chat/completions", 200) not in paths, "they have lines of their own"
    (no_http,) = [line for line in lines if "no HTTP/1.1" in line["message"]]
    assert "exception" not in no_http


def test_a_second_signal_ends_it_at_once(ready: Serving) -> None:
    """Whatever the engine is doing: here, a round that takes a minute."""
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(ready.ask, "sleep")
        time.sleep(0.5)  # it is on its way; were it not, the first signal would do and the exit code be 0
        ready.ctrl_c()
        ready.wait_for("a second SIGINT ends the process at once")
        started = time.monotonic()
        ready.ctrl_c()
        assert ready.exit_code() == 130
        assert time.monotonic() - started < 5
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            asking.result()


@pytest.mark.parametrize("phase", ["build", "never_build"])
def test_no_engine_outlives_its_server(tmp_path: Path, phase: str) -> None:
    with serving(tmp_path, phase) as command:
        command.wait_for("/v1" if phase == "build" else "Beginning: done")
        engine = command.engine()
        command.process.kill()
        deadline = time.monotonic() + 5
        while alive(engine):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_loading(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, "never_build") as command:
        command.wait_for("Beginning: done")
        os.killpg(command.process.pid, number)
        assert command.exit_code() == 128 + number
        assert command.log.read_text() == "Beginning: done\n"


def test_a_killed_engine_ends_the_server(ready: Serving) -> None:
    """So that a supervisor starts both again."""
    with ready.ask("stall", stream=True) as response:
        assert b"assistant" in response.readline()
        ready.engine().kill()
        assert b'"error"' in response.read()
    assert ready.exit_code() == 1
    assert ready.log.read_text().splitlines()[-1] == "specdec: The engine's process was ended by signal 9 (Killed)."


def test_a_device_that_has_failed_ends_the_server_with_a_message(ready: Serving) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ready.ask("dead")
    assert caught.value.status == 500
    assert ready.exit_code() == 1
    said = ready.log.read_text()
    assert "the script says so" in said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "specdec: The engine's process ended with exit code 1."


def test_an_engine_that_crashes_ends_the_server(ready: Serving) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ready.ask("crash")
    assert caught.value.status == 500
    assert ready.exit_code() == 1
    assert "RuntimeError: the script says so" in ready.log.read_text()
    assert ready.log.read_text().splitlines()[-1] == "specdec: The engine's process ended with exit code 1."


@pytest.mark.parametrize(
    ("build", "code", "said"),
    [
        ("refuse_to_build", 2, "specdec: There is no such model; name another one.\n"),
        ("crash_while_building", 1, "specdec: The engine's process ended with exit code 1.\n"),
    ],
)
def test_an_engine_that_cannot_be_built(tmp_path: Path, build: str, code: int, said: str) -> None:
    with serving(tmp_path, build) as command:
        assert command.exit_code() == code
        log = command.log.read_text()
    assert log.endswith(said)
    assert (log == said) == (code == 2), "a user's error is one line"
