"""The queue is bounded: whoever finds it full is told so at once, and when to come again."""

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError

from tests.server.conftest import Client, Poll, Start
from tests.server.fake_engine import ANSWER, MAX_BATCH, MODEL, FakeEngine, Script

pytestmark = pytest.mark.timeout(60)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


def body(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": word}]} | fields


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_refuses_and_has_room_again(start: Start, engine: FakeEngine, poll: Poll, stream: bool) -> None:
    client = await start(max_queued_requests=1)
    engine.scripts["stall"] = Script(pause_after=0)
    held = [asyncio.create_task(client.post(CHAT, json=body("stall", n=n))) for n in (1, MAX_BATCH)]
    await poll.until(lambda: len(engine.requests) == MAX_BATCH + 1)
    refused = await client.post(CHAT, json=body("hello", stream=stream))
    error = (await refused.json())["error"]
    assert (refused.status, refused.headers["Retry-After"], error["code"]) == (429, "1", "queue_full")
    assert error["type"] == "rate_limit_error"
    assert "3 requests run or wait, of 3" in error["message"]
    held[0].cancel()
    await poll.until(lambda: len(engine.aborted) == 1)
    answered = await client.post(CHAT, json=body("hello"))
    assert (await answered.json())["choices"][0]["message"]["content"] == ANSWER
    held[1].cancel()


async def test_a_burst_finds_room_for_all_that_can_run_beside_those_that_wait(start: Start, engine: FakeEngine) -> None:
    client = await start(max_queued_requests=3)
    found = await asyncio.gather(*(client.post(CHAT, json=body("hello")) for _ in range(MAX_BATCH + 3)))
    assert [each.status for each in found] == [200] * len(found)


async def test_a_call_with_more_answers_than_there_is_room_for_is_never_taken(start: Start, engine: FakeEngine) -> None:
    client = await start(max_queued_requests=1)
    for path, fields in ((CHAT, body("hello", n=4)), (COMPLETION, {"model": MODEL, "prompt": ["hello", "there"], "n": 2})):
        refused = await client.post(path, json=fields)
        error = (await refused.json())["error"]
        assert (refused.status, error["param"], error["code"]) == (400, "n", "too_many_answers")
        assert "4 answers" in error["message"]
    assert not engine.requests
    assert (await client.post(CHAT, json=body("hello", n=3))).status == 200


async def test_openais_client_knows_what_it_was_told(start: Start, engine: FakeEngine, poll: Poll) -> None:
    client: Client = await start(max_queued_requests=1)
    engine.scripts["stall"] = Script(pause_after=0)
    held = asyncio.create_task(client.post(CHAT, json=body("stall", n=3)))
    await poll.until(lambda: len(engine.requests) == 3)
    ours = AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="none", max_retries=0)
    with pytest.raises(RateLimitError, match="The queue is full"):
        await ours.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    held.cancel()
