"""Clients that leave, engines that fail, servers that end: nobody waits for ever and nobody else suffers."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

import specdec
from tests.server.conftest import Client, Poll, Start
from tests.server.fake_engine import ANSWER, MODEL, FakeEngine, Script, flood_of
from tests.server.test_streaming import read_events, text_of

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


@contextmanager
def slow_client(client: Client, word: str) -> Iterator[socket.socket]:
    """Asks for a stream and does not read it yet. In HTTP/1.0 a stream is its own text and ends with the connection."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        slow.connect((client.host, client.port))
        data = json.dumps(body(word, stream=True)).encode()
        slow.sendall(b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(data), data))
        yield slow


async def test_a_slow_client_holds_nobody_up_and_misses_nothing(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts["flood"] = Script(flood=(1 << 18, 60), sleep=0.002)
    with slow_client(client, "flood") as slow:
        await poll.until(lambda: engine.requests and not engine.status().num_running)
        assert await answer_of(client, "hello") == ANSWER
        connections: Any = cast(Any, client.server).runner.server.connections
        waiting = max(connection.transport.get_write_buffer_size() for connection in connections)
        assert 0 < waiting < 1 << 20, "what it has not read waits as one text, not as bytes to send"
        seen = b"".join(await asyncio.to_thread(lambda: list(iter(lambda: slow.recv(1 << 20), b""))))
    chunks = read_events(seen.partition(b"\r\n\r\n")[2].decode())
    assert text_of(chunks) == flood_of(engine.scripts["flood"])
    assert len(chunks) < 60, "what came while it did not read is one chunk"


async def test_a_client_that_stops_reading_is_given_up(
    client: Client, engine: FakeEngine, poll: Poll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.server.events._STALL_SECONDS", 0.2)
    engine.scripts["flood"] = Script(flood=(1 << 18, 10**6), sleep=0.002)
    with slow_client(client, "flood"):
        await poll.until(lambda: engine.aborted)
    assert await answer_of(client, "hello") == ANSWER


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
    engine.scripts["crash"] = Script(crash=RuntimeError)
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


async def test_a_stream_that_the_server_cuts_ends_with_an_error(client: Client, engine: FakeEngine) -> None:
    engine.scripts["stall"] = Script(pause_after=6)
    response = await client.post(CHAT, json=body("stall", stream=True))
    seen = await read_until(response, b"the w")
    started = time.monotonic()
    await client.server.close()
    assert time.monotonic() - started < 3
    seen += await response.content.read()
    assert json.loads(seen.decode().rstrip().rpartition("data: ")[2])["error"]["code"] == "shutting_down"
    assert b"[DONE]" not in seen
    assert len(engine.to_be_aborted) == 1, "which an engine that ends with its server may leave undone"


async def test_a_waiting_client_gets_an_answer_when_the_server_ends(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts["stall"] = Script(pause_after=6)
    waiting = asyncio.create_task(client.post(CHAT, json=body("stall")))
    await poll.until(lambda: engine.status().num_running == 1)
    await client.server.close()
    async with asyncio.timeout(3):
        response = await waiting
    assert response.status == 503
    await poll.until(lambda: engine.status().num_running == 0)  # the engine has a thread of its own


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

    slow = asyncio.create_task(client.post(COMPLETION, data=slowly(), headers={"Content-Type": "application/json"}))
    assert await answer_of(client, "hello") == ANSWER
    sent.set()
    assert (await slow).status == 200
