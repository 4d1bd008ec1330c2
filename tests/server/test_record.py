"""What the log says of calls that end well, badly, or because their clients left."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Client, Poll
from tests.server.fake_engine import MODEL, FakeEngine, Script

CHAT = "/v1/chat/completions"


def body(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": word}]} | fields


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """The fields of the lines so far, with their messages and levels."""
    found: list[dict[str, Any]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fields = getattr(record, "fields", {})
            found.append({**fields, "message": record.getMessage(), "level": record.levelname, "logger": record.name})

    keeper, log = Keeper(), logging.getLogger("specdec.server")
    before = log.level
    log.addHandler(keeper)
    log.setLevel(logging.DEBUG)
    yield found
    log.removeHandler(keeper)
    log.setLevel(before)


def calls(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["logger"] == "specdec.server.requests"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_is_told_as_that(
    client: Client, engine: FakeEngine, poll: Poll, records: list[dict[str, Any]], streamed: bool
) -> None:
    engine.scripts["stall"] = Script(pause_after=4)
    waiting = asyncio.create_task(client.post(CHAT, json=body("stall", stream=streamed)))
    await poll.until(lambda: engine.status().num_running == 1)
    await asyncio.sleep(0.1)
    if streamed:
        (await waiting).close()
    waiting.cancel()
    await poll.until(lambda: calls(records))
    (record,) = calls(records)
    assert (record["outcome"], record["tokens"]) == ("left", 4)
    assert "first_token_seconds" in record


async def test_a_failed_round_is_told_with_its_error(client: Client, engine: FakeEngine, records: list[dict[str, Any]]) -> None:
    engine.scripts["fail"] = Script(fail_after=2)
    assert (await client.post(CHAT, json=body("fail"))).status == 500
    (record,) = calls(records)
    assert (record["outcome"], record["error"]) == ("failed", "out of luck")
    assert record["message"].endswith("; out of luck")


async def test_every_call_has_one_line_and_choices_are_counted_together(client: Client, records: list[dict[str, Any]]) -> None:
    whole = await (await client.post(CHAT, json=body("hello", n=3))).json()
    (record,) = calls(records)
    assert record["tokens"] == whole["usage"]["completion_tokens"]
    assert (record["prompt_tokens"], record["choices"]) == (whole["usage"]["prompt_tokens"], 3)
    assert record["call"] == whole["id"]


async def test_probes_are_for_debuggers(client: Client, records: list[dict[str, Any]]) -> None:
    for path in ("/health", "/metrics", "/v1/models", "/nowhere"):
        await client.get(path, headers={"X-Request-Id": "mine"})
    access = [record for record in records if record["logger"] == "specdec.server.access"]
    for record in access:
        assert record["request_id"] == "mine"
        assert record["level"] == ("DEBUG" if record["path"] in ("/health", "/metrics") else "INFO")
