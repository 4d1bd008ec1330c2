"""Clients that leave, engines that fail, servers that end: nobody waits for ever and nobody else suffers."""

import asyncio
import time
from typing import Any

import pytest

import specdec
from tests.server.conftest import ANSWER, MODEL, Client, FakeEngine, Poll, Script, Start

pytestmark = pytest.mark.timeout(60)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def body(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": word}]} | fields


async def answer_of(client: Client, word: str) -> str:
    response = await client.post(CHAT, json=body(word))
    assert response.status == 200, await response.text()
    found: str = (await response.json())["choices"][0]["message"]["content"]
    return found


async def read_until(response: Any, word: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(5):
        while word not in seen:
            seen += await response.content.readany()
    return seen


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("pause_after", [0, 4])
async def test_a_client_that_leaves_ends_its_requests(
    client: Client, engine: FakeEngine, poll: Poll, n: int, pause_after: int
) -> None:
    engine.scripts["stall"] = Script(pause_after=pause_after)
    waiting = asyncio.create_task(client.post(CHAT, json=body("stall", n=n)))
    await poll.until(lambda: engine.status().num_running == n)
    waiting.cancel()
    await poll.until(lambda: engine.status().num_running == 0)
    assert sorted(engine.aborted) == sorted(request.request_id for request in engine.requests)
    assert await answer_of(client, "hello") == ANSWER


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_a_stream_ends_its_requests(client: Client, engine: FakeEngine, poll: Poll, n: int) -> None:
    engine.scripts["stall"] = Script(pause_after=6)
    response = await client.post(CHAT, json=body("stall", n=n, stream=True))
    await read_until(response, b"the w")
    response.close()
    await poll.until(lambda: engine.status().num_running == 0)
    assert len(engine.aborted) == n
    assert await answer_of(client, "hello") == ANSWER


async def test_a_client_that_leaves_does_not_touch_the_others(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts["stall"] = Script(pause_after=3)
    staying = asyncio.create_task(answer_of(client, "stall here"))
    leaving = asyncio.create_task(answer_of(client, "stall there"))
    await poll.until(lambda: engine.status().num_running == 2)
    leaving.cancel()
    await poll.until(lambda: len(engine.aborted) == 1)
    engine.resume()
    assert await staying == ANSWER


async def test_what_ends_by_itself_is_not_aborted(client: Client, engine: FakeEngine) -> None:
    assert await answer_of(client, "hello") == ANSWER
    response = await client.post(CHAT, json=body("hello", stream=True))
    await response.read()
    await client.server.close()
    assert engine.aborted == []


@pytest.mark.parametrize("fail_after", [0, 4])
async def test_a_failed_round_is_a_500_for_its_request_alone(client: Client, engine: FakeEngine, fail_after: int) -> None:
    engine.scripts["fail"] = Script(fail_after=fail_after)
    failed, answer = await asyncio.gather(client.post(CHAT, json=body("fail")), answer_of(client, "hello"))
    assert failed.status == 500
    error = (await failed.json())["error"]
    assert (error["type"], error["param"]) == ("server_error", None)
    assert "out of luck" in error["message"]
    assert answer == ANSWER
    assert (await client.get("/health")).status == 200


async def test_one_failed_choice_fails_the_call_and_frees_the_rest(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts["fail"] = Script(fail_after=2)
    engine.scripts["stall"] = Script(pause_after=2)
    body = {"model": MODEL, "prompt": ["stall", "fail", "stall"], "max_tokens": 50}
    assert (await client.post(COMPLETION, json=body)).status == 500
    await poll.until(lambda: engine.status().num_running == 0)
    assert len(engine.aborted) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_engine_is_told_to_everyone(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts["stall"] = Script(pause_after=6)
    engine.scripts["crash"] = Script(crash=True)
    assert (await client.get("/health")).status == 200
    waiting = asyncio.create_task(client.post(CHAT, json=body("stall")))
    streaming = await client.post(CHAT, json=body("stall", stream=True))
    await read_until(streaming, b"the w")
    async with asyncio.timeout(5):
        assert (await client.post(CHAT, json=body("crash"))).status == 500
        assert (await waiting).status == 500
        assert b'"error"' in await streaming.content.read()
        health = await client.get("/health")
        assert (health.status, health.content_type) == (503, "application/json")
        late = await client.post(CHAT, json=body("hello"))
        assert late.status in (500, 503)
        assert (await late.json())["error"]["type"] == "server_error"
        assert (await client.get("/metrics")).status == 200


async def test_a_stream_ends_cleanly_when_the_server_does(client: Client, engine: FakeEngine) -> None:
    engine.scripts["stall"] = Script(pause_after=6)
    response = await client.post(CHAT, json=body("stall", stream=True))
    seen = await read_until(response, b"the w")
    started = time.monotonic()
    await client.server.close()
    assert time.monotonic() - started < 3
    seen += await response.content.read()
    assert seen.endswith(b"data: [DONE]\n\n")
    assert len(engine.aborted) == 1


async def test_a_waiting_client_gets_an_answer_when_the_server_ends(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts["stall"] = Script(pause_after=6)
    waiting = asyncio.create_task(client.post(CHAT, json=body("stall")))
    await poll.until(lambda: engine.status().num_running == 1)
    await client.server.close()
    async with asyncio.timeout(3):
        response = await waiting
    assert response.status in (200, 503)
    assert engine.status().num_running == 0


async def test_a_server_ends_at_once_when_nothing_runs(start: Start) -> None:
    client = await start()
    assert (await client.get("/health")).status == 200
    started = time.monotonic()
    await client.close()
    assert time.monotonic() - started < 1


async def test_health_and_version(client: Client) -> None:
    health = await client.get("/health")
    assert health.status == 200
    version = await client.get("/version")
    assert (await version.json())["version"] == specdec.__version__


async def test_a_slow_body_holds_nobody_up(client: Client) -> None:
    sent = asyncio.Event()

    async def slowly() -> Any:
        yield b'{"model": "tiny/model", '
        await sent.wait()
        yield b'"prompt": "hello"}'

    slow = asyncio.create_task(client.post(COMPLETION, data=slowly()))
    assert await answer_of(client, "hello") == ANSWER
    sent.set()
    assert (await slow).status == 200
