"""An engine in a process of its own: the same answers, and what happens when it, or what it says, is not as it should be."""

import asyncio
import functools
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psutil
import pytest

from specdec.assemble import Assembled
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.progress import Advance, NoProgress, Progress
from specdec.request import Request
from specdec.server.app import app_for
from specdec.server.process import EngineEndedError, EngineProcess
from specdec.server.requests import Call
from tests.server import fake_engine
from tests.server.conftest import Client
from tests.server.fake_engine import ANSWER, MAX_MODEL_LEN, MODEL

pytestmark = pytest.mark.timeout(60)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def body(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": word}]} | fields


def engine_process(build: Callable[[EngineConfig, Progress], Assembled]) -> EngineProcess:
    return EngineProcess(functools.partial(build, EngineConfig()), fake_engine.banner)


def engine_pid() -> int:
    """The one process that this one has started for an engine."""
    (found,) = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    return int(found.pid)


@pytest.fixture
def process() -> Iterator[EngineProcess]:
    with engine_process(fake_engine.build) as found:
        assert found.load(NoProgress()) == f"A script in place of {MODEL}"
        yield found


@pytest.fixture
async def client(process: EngineProcess, aiohttp_client: Callable[..., Awaitable[Client]]) -> Client:
    """Plain HTTP to a server whose engine is in another process."""
    return await aiohttp_client(app_for(process))


async def error_of(response: Any) -> dict[str, Any]:
    found = await response.json()
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = found["error"]
    return error


async def answer_of(client: Client, word: str, **fields: Any) -> str:
    response = await client.post(CHAT, json=body(word, **fields))
    assert response.status == 200, await response.text()
    found: str = (await response.json())["choices"][0]["message"]["content"]
    return found


async def test_it_serves_and_counts(client: Client) -> None:
    assert await answer_of(client, "hello") == ANSWER
    assert (await (await client.get("/health")).json()) == {"status": "ok", "num_running": 0, "num_waiting": 0}
    (model,) = (await (await client.get("/v1/models")).json())["data"]
    assert (model["id"], model["max_model_len"]) == (MODEL, MAX_MODEL_LEN)
    metrics = await client.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain; version=")
    assert f'specdec:e2e_request_latency_seconds_count{{model_name="{MODEL}"}} 1.0' in await metrics.text()


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_the_engine_refuses_is_refused_before_anything_is_sent(client: Client, streamed: bool) -> None:
    response = await client.post(CHAT, json=body("hello", stream=streamed, stop_token_ids=[9999]))
    assert (response.status, response.content_type) == (400, "application/json")
    error = await error_of(response)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "stop_token_ids", "invalid_value")
    response = await client.post(COMPLETION, json={"model": MODEL, "prompt": [40] * 2_000_000, "stream": streamed})
    assert (await error_of(response))["message"].startswith(f"This server's context holds {MAX_MODEL_LEN} tokens")
    assert await answer_of(client, "hello") == ANSWER


async def test_a_client_that_leaves_ends_its_requests(client: Client) -> None:
    response = await client.post(CHAT, json=body("stall", stream=True))
    await response.content.readany()
    response.close()
    async with asyncio.timeout(5):
        while (await (await client.get("/health")).json())["num_running"]:
            await asyncio.sleep(0.01)


async def test_a_huge_answer_holds_nobody_up(client: Client) -> None:
    flood = asyncio.create_task(answer_of(client, "flood"))
    assert await answer_of(client, "hello") == ANSWER
    assert await flood == fake_engine.flood_of(fake_engine.SCRIPTS["flood"])


async def test_what_cannot_be_sent_ends_the_engine_and_nobody_waits(client: Client) -> None:
    """It is no answer of any engine's; what matters is that it is told to all."""
    stalled = asyncio.create_task(client.post(CHAT, json=body("stall")))
    await asyncio.sleep(0.2)
    async with asyncio.timeout(10):
        assert (await client.post(CHAT, json=body("spoilt"))).status == 500
        assert (await stalled).status == 500
        assert (await client.get("/health")).status == 503


async def test_a_request_that_cannot_be_sent_fails_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(request_id="r", prompt_ids=(cast(int, threading.Lock()),))
    monkeypatch.setattr("specdec.server.routes.completions.completion_call", lambda *_: Call("c", (request,), 1, ("",)))
    response = await client.post(COMPLETION, json={"model": MODEL, "prompt": "hello"})
    assert (response.status, (await error_of(response))["code"]) == (500, "internal_error")
    assert await answer_of(client, "hello") == ANSWER


async def test_a_killed_engine_is_told_to_everyone(client: Client, process: EngineProcess) -> None:
    waiting = asyncio.create_task(client.post(CHAT, json=body("stall")))
    streaming = await client.post(CHAT, json=body("stall", stream=True))
    seen = b""
    async with asyncio.timeout(10):
        while b"ner" not in seen:
            seen += await streaming.content.readany()
        os.kill(engine_pid(), signal.SIGKILL)
        failed = await waiting
        assert failed.status == 500
        assert (await error_of(failed))["type"] == "server_error"
        assert b'"error"' in await streaming.content.read()
        assert (await client.get("/health")).status == 503
        late = await client.post(CHAT, json=body("hello"))
        assert late.status == 503
        assert (await error_of(late))["code"] == "engine_stopped"
        assert (await client.get("/metrics")).status == 200
    assert process.join() == "The engine's process was ended by signal 9 (Killed)."


class Shown:
    """See `specdec.progress.Progress`: writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[object] = []

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        self.lines.append((description, total))
        yield self.lines.append
        self.lines.append(f"{description} is done")


def test_progress_is_shown_here() -> None:
    shown = Shown()
    with engine_process(fake_engine.build) as process:
        process.load(shown)
    assert shown.lines == [("Making a tokenizer", 2), 2, "Making a tokenizer is done"]


def test_a_wrong_setting_is_told_as_if_it_were_found_here() -> None:
    shown = Shown()
    with engine_process(fake_engine.refuse_to_build) as process, pytest.raises(ConfigError) as caught:
        process.load(shown)
    assert str(caught.value) == "There is no such model; name another one."
    assert shown.lines == [("Looking", None)], "a task that fails is not done"


def test_a_crash_while_loading_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with engine_process(fake_engine.crash_while_building) as process, pytest.raises(EngineEndedError) as caught:
        process.load(NoProgress())
    assert str(caught.value) == "The engine's process ended with exit code 1."
    assert "RuntimeError: out of luck" in capfd.readouterr().err


def test_leaving_before_the_engine_is_ready_leaves_no_process() -> None:
    class Impatient(Exception):
        pass

    class Watching(Shown):
        @contextmanager
        def task(self, description: str, total: int | None) -> Iterator[Advance]:
            if description == "Waiting":
                raise Impatient
            yield self.lines.append

    with pytest.raises(Impatient), engine_process(fake_engine.never_build) as process:
        process.load(Watching())
    assert process.join() == "The engine's process ended with exit code 143."
