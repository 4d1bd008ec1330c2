"""Streams: the chunks that OpenAI's API promises, sent as the engine speaks."""

import asyncio
import json
import time
from typing import Any

import openai as openai_package
import pytest
from openai import AsyncOpenAI

from specdec.text.tokenizer import Tokenizer
from tests.server.conftest import Client, Start
from tests.server.fake_engine import ANSWER, MODEL, NUM_CACHED, FakeEngine, Script

pytestmark = pytest.mark.timeout(60)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": HELLO, "stream": True},
    COMPLETION: {"model": MODEL, "prompt": "hello", "stream": True, "max_tokens": 100},
}
USAGE = {"stream_options": {"include_usage": True}}


def read_events(raw: str) -> list[Any]:
    """The chunks of a whole stream; its frame is checked."""
    *events, end = raw.split("\n\n")
    assert end == ""
    data = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    assert data.pop() == "[DONE]"
    return [json.loads(entry) for entry in data]


async def stream(client: Client, path: str, **fields: Any) -> list[Any]:
    response = await client.post(path, json=BODIES[path] | fields)
    assert response.status == 200, await response.text()
    return read_events(await response.text())


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("path", BODIES)
async def test_the_response_is_an_event_stream(client: Client, path: str) -> None:
    response = await client.post(path, json=BODIES[path])
    assert response.content_type == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-cache"
    chunks = read_events(await response.text())
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk" if path == CHAT else "text_completion"}
    assert all("usage" not in chunk for chunk in chunks), "nobody asked"


async def test_a_chat_opens_with_a_role_and_ends_with_a_reason(client: Client) -> None:
    chunks = await stream(client, CHAT)
    first, last = chunks[0]["choices"][0], chunks[-1]["choices"][0]
    assert first["delta"]["role"] == "assistant"
    assert first["finish_reason"] is None
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    between = [chunk["choices"][0] for chunk in chunks[1:-1]]
    assert all(choice["delta"].get("content") and choice["finish_reason"] is None for choice in between)
    assert text_of(chunks) == ANSWER


async def test_a_completion_ends_with_a_reason(client: Client) -> None:
    chunks = await stream(client, COMPLETION)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert text_of(chunks) == ANSWER


async def test_echo_comes_first(client: Client) -> None:
    chunks = await stream(client, COMPLETION, echo=True)
    assert chunks[0]["choices"][0]["text"].startswith("hello")
    assert text_of(chunks) == "hello" + ANSWER


@pytest.mark.parametrize("path", BODIES)
async def test_max_tokens_ends_a_stream_for_length(client: Client, path: str, tokenizer: Tokenizer) -> None:
    chunks = await stream(client, path, max_tokens=4)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert text_of(chunks) == tokenizer.decode(tokenizer.encode(ANSWER)[:4])


@pytest.mark.parametrize("path", BODIES)
async def test_usage_comes_last_when_asked_for(client: Client, path: str) -> None:
    *chunks, last = await stream(client, path, **USAGE)
    assert last["choices"] == []
    whole = await (await client.post(path, json=BODIES[path] | {"stream": False})).json()
    assert last["usage"] == whole["usage"]
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == NUM_CACHED
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("fields", [{}, USAGE], ids=["plain", "with usage"])
async def test_the_last_chunk_tells_what_speculation_did(client: Client, path: str, fields: dict[str, Any]) -> None:
    *chunks, last = await stream(client, path, **fields)
    whole = await (await client.post(path, json=BODIES[path] | {"stream": False})).json()
    assert last["metrics"] == whole["metrics"]
    assert not any("metrics" in chunk for chunk in chunks)


@pytest.mark.parametrize("path", BODIES)
async def test_a_stop_string_is_never_seen(client: Client, path: str, engine: FakeEngine) -> None:
    engine.scripts["hello"] = Script(per_step=1)
    for stop in (" in the", "inn", "1212"):
        chunks = await stream(client, path, stop=[stop])
        assert text_of(chunks) == ANSWER[: ANSWER.index(stop)]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", BODIES)
async def test_characters_of_several_tokens_come_whole(client: Client, path: str, engine: FakeEngine) -> None:
    answer = "é🦜日本 the end"
    engine.scripts["hello"] = Script(answers=(answer,), per_step=1)
    chunks = await stream(client, path)
    assert text_of(chunks) == answer
    assert not any("\ufffd" in json.dumps(chunk, ensure_ascii=False) for chunk in chunks)


@pytest.mark.parametrize("path", BODIES)
async def test_choices_are_told_apart_by_index(client: Client, path: str, engine: FakeEngine) -> None:
    answers = ("one", "the second one", "and the third of the three")
    engine.scripts["hello"] = Script(answers=answers)
    chunks = await stream(client, path, n=3, **USAGE)
    for index, answer in enumerate(answers):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert text_of(chunks, index) == answer
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        if path == CHAT:
            assert [choice["delta"].get("role") for choice in own] == ["assistant"] + [None] * (len(own) - 1)
    assert sum(1 for chunk in chunks if chunk.get("usage")) == 1
    assert not any("metrics" in chunk for chunk in chunks)


async def test_several_prompts_in_one_stream(client: Client, engine: FakeEngine) -> None:
    engine.scripts["hello"] = Script(answers=("first",))
    engine.scripts["there"] = Script(answers=("second",))
    chunks = await stream(client, COMPLETION, prompt=["hello", "there"])
    assert [text_of(chunks, 0), text_of(chunks, 1)] == ["first", "second"]


@pytest.mark.parametrize("stop", [[], [" the inn"]], ids=["no stop string", "text held back"])
async def test_streamed_chat_logprobs_are_those_of_the_whole(client: Client, stop: list[str]) -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": 20, "stop": stop}
    chunks = await stream(client, CHAT, **fields)
    whole = await (await client.post(CHAT, json=BODIES[CHAT] | fields | {"stream": False})).json()
    streamed = [choice["logprobs"]["content"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert [entry for part in streamed for entry in part] == whole["choices"][0]["logprobs"]["content"]


async def test_streamed_completion_logprobs_are_those_of_the_whole(client: Client, engine: FakeEngine) -> None:
    engine.scripts["hello"] = Script(answers=("é🦜日本 the end",), per_step=2)
    fields = {"logprobs": 2, "max_tokens": 14}
    chunks = await stream(client, COMPLETION, **fields)
    whole = (await (await client.post(COMPLETION, json=BODIES[COMPLETION] | fields | {"stream": False})).json())["choices"][0]
    streamed = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    for name, expected in whole["logprobs"].items():
        assert [entry for part in streamed for entry in part[name]] == expected, name


@pytest.mark.parametrize("path", BODIES)
async def test_text_is_sent_while_the_engine_still_speaks(client: Client, path: str, engine: FakeEngine) -> None:
    engine.scripts["hello"] = Script(pause_after=6)
    response = await client.post(path, json=BODIES[path])
    seen = b""
    async with asyncio.timeout(5):
        while b"the w" not in seen:
            seen += await response.content.readany()
    assert b"[DONE]" not in seen
    assert engine.status().num_running == 1
    engine.resume()
    assert text_of(read_events((seen + await response.content.read()).decode())) == ANSWER


async def test_streams_run_side_by_side(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    for i in range(32):
        engine.scripts[f"number {i}."] = Script(answers=(f"answer {i} to the question",), per_step=1 + i % 3)

    async def talk(i: int) -> str:
        messages: Any = [{"role": "user", "content": f"number {i}."}]
        chunks = await openai.chat.completions.create(model=MODEL, messages=messages, stream=True)
        return "".join([choice.delta.content or "" async for chunk in chunks for choice in chunk.choices])

    found = await asyncio.gather(*map(talk, range(32)))
    assert list(found) == [f"answer {i} to the question" for i in range(32)]


async def test_the_official_client_reads_a_stream(openai: AsyncOpenAI) -> None:
    chunks = await openai.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    found = [chunk async for chunk in chunks]
    assert "".join(choice.delta.content or "" for chunk in found for choice in chunk.choices) == ANSWER
    assert found[-1].usage is not None
    assert found[-1].usage.completion_tokens_details is not None
    assert (found[-1].model_extra or {})["metrics"]["speculative_decoding"]["num_spec_steps"] == 5
    texts = await openai.completions.create(model=MODEL, prompt="hello", stream=True, max_tokens=100)
    assert "".join([choice.text async for text in texts for choice in text.choices]) == ANSWER


async def test_the_official_clients_stream_helper(openai: AsyncOpenAI) -> None:
    async with openai.chat.completions.stream(model=MODEL, messages=HELLO) as helper:
        kinds = {event.type async for event in helper}
        found = await helper.get_final_completion()
    assert found.choices[0].message.content == ANSWER
    assert {"chunk", "content.delta", "content.done"} <= kinds


@pytest.mark.parametrize("path", BODIES)
async def test_a_failure_before_the_first_token_has_a_status(client: Client, path: str, engine: FakeEngine) -> None:
    engine.scripts["hello"] = Script(fail_after=0)
    response = await client.post(path, json=BODIES[path])
    assert response.status == 500
    error = (await response.json())["error"]
    assert error["type"] == "server_error"
    assert "out of luck" in error["message"]


async def test_a_failure_in_the_middle_of_a_stream_is_raised_by_the_client(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    engine.scripts["hello"] = Script(fail_after=6, pause_after=6)
    chunks = await openai.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    seen = ""

    async def read() -> None:
        nonlocal seen
        async for chunk in chunks:
            seen += chunk.choices[0].delta.content or ""
            if seen:
                engine.resume()

    with pytest.raises(openai_package.APIError, match="out of luck"):
        await read()
    assert seen
    assert ANSWER.startswith(seen)


async def hurry(engine: FakeEngine) -> None:
    """Let the engine say all that is left before the server hears any of it."""
    engine.resume()
    deadline = time.monotonic() + 5
    while engine.status().num_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the event loop does not run meanwhile


@pytest.mark.parametrize(
    ("path", "fields"),
    [(CHAT, {}), (CHAT, {"logprobs": True, "top_logprobs": 2}), (COMPLETION, {}), (COMPLETION, {"logprobs": 2})],
)
async def test_what_came_since_the_last_write_is_one_chunk(
    client: Client, path: str, fields: dict[str, Any], engine: FakeEngine
) -> None:
    engine.scripts["hello"] = Script(answers=("é🦜日本 the end",), per_step=1, pause_after=6)
    response = await client.post(path, json=BODIES[path] | fields | USAGE)
    seen = b""
    async with asyncio.timeout(5):
        while rb"\udd9c" not in seen:
            seen += await response.content.readany()
    await hurry(engine)
    *chunks, last = read_events((seen + await response.content.read()).decode())
    whole = await (await client.post(path, json=BODIES[path] | fields | {"stream": False})).json()
    choices = [chunk["choices"][0] for chunk in chunks]
    texts = [choice["text"] if "text" in choice else choice["delta"].get("content") for choice in choices]
    assert [text for text in texts if text] == ["é", "🦜", "日本 the end"]
    assert last["usage"] == whole["usage"]
    said = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    for name, expected in (whole["choices"][0]["logprobs"] or {}).items():
        if isinstance(expected, list):
            assert [entry for part in said for entry in part[name]] == expected, name


async def test_silence_is_filled_with_comments(start: Start, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.server.client._QUIET_SECONDS", 0.02)
    engine.scripts["hello"] = Script(pause_after=0)
    client = await start()
    response = await client.post(CHAT, json=BODIES[CHAT])
    async with asyncio.timeout(5):
        seen = await response.content.readany()
    assert seen.startswith(b": keep-alive\n\n")
    engine.resume()
    assert text_of(read_events((seen + await response.content.read()).decode())) == ANSWER
