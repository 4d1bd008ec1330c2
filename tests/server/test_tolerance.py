"""What clients send beside what is asked: accepted where it cannot change the answer, and told; unset as they write it."""

import logging
from typing import Any

import pytest

from specdec.server.tolerance import Told
from specdec.text.tokenizer import Tokenizer
from tests.server.conftest import Client
from tests.server.fake_engine import ANSWER, MAX_MODEL_LEN, MODEL, FakeEngine

pytestmark = pytest.mark.timeout(60)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
IGNORED = "x-specdec-ignored"

NO_EFFECT: tuple[dict[str, Any], ...] = (
    {"skip_special_tokens": True},
    {"spaces_between_special_tokens": True},
    {"use_beam_search": False},
    {"length_penalty": 1.0},
    {"best_of": 1},
    {"echo": False},
    {"cache_prompt": True},
    {"prompt_cache_retention": "24h"},
    {"prompt_cache_key": "k"},
    {"store": True},
    {"metadata": {"a": "b"}},
    {"user": "ada"},
    {"user": 5},
    {"service_tier": "flex"},
    {"priority": 3},
    {"session_id": "s-1"},
    {"conversation_id": 17},
    {"safety_identifier": "x"},
    {"tools": []},
    {"functions": []},
    {"tool_choice": "auto"},
    {"function_call": "none"},
    {"parallel_tool_calls": True},
    {"response_format": {"type": "text"}},
    {"modalities": ["text"]},
    {"verbosity": "medium"},
    {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1},
    {"dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_sequence_breakers": ["\n"]},
    {"xtc_probability": 0.0, "xtc_threshold": 0.1},
    {"typical_p": 1, "tfs_z": 1.0, "repeat_penalty": 1.0, "repeat_last_n": 64},
    {"logits_processors": []},
    {"bad_words": []},
    {"anything_else": False},
    {"stream_options": {"include_usage": True}},  # without a stream
)
UNSET: tuple[dict[str, Any], ...] = (
    dict.fromkeys(("temperature", "top_p", "seed", "guided_json", "chat_template", "truncate_prompt_tokens", "tools", "xyz")),
    {"model": ""},
    {"max_tokens": -1},
    {"max_completion_tokens": -1.0},
    {"seed": -1},
    {"stop": ""},
    {"stop": []},
    {"top_k": -1},
    {"top_logprobs": 0},
    {"chat_template_kwargs": {}, "continue_final_message": False, "add_generation_prompt": True},
    {"include_stop_str_in_output": False, "cache_salt": "", "logit_bias": {}},
)
ECHOES: tuple[dict[str, Any], ...] = (
    {"refusal": "no"},
    {"provider_specific_fields": {"a": 1}},
    {"id": "msg_1", "annotations": [{"type": "url"}]},
    {"cache_control": {"type": "ephemeral"}},
    {"reasoning_details": [{"text": "hm"}]},
    {"thinking_blocks": [{"thinking": "hm"}]},
)


async def said(client: Client, path: str = CHAT, **fields: Any) -> tuple[str, dict[str, Any]]:
    """The header that tells, and the first choice."""
    response = await client.post(path, json=HELLO | fields if path == CHAT else {"prompt": "hello"} | fields)
    assert response.status == 200, await response.text()
    return response.headers.get(IGNORED, ""), (await response.json())["choices"][0]


@pytest.mark.parametrize("fields", NO_EFFECT, ids=str)
async def test_what_cannot_change_the_answer_is_accepted_and_told(client: Client, fields: dict[str, Any]) -> None:
    told, choice = await said(client, **fields)
    assert choice["message"]["content"] == ANSWER
    assert told.split(", ") == list(fields)


@pytest.mark.parametrize("fields", UNSET, ids=str)
async def test_what_asks_for_nothing_needs_no_telling(client: Client, fields: dict[str, Any]) -> None:
    told, choice = await said(client, **fields)
    assert (told, choice["message"]["content"]) == ("", ANSWER)


@pytest.mark.parametrize("keys", ECHOES, ids=str)
async def test_history_comes_back_as_clients_keep_it(client: Client, keys: dict[str, Any]) -> None:
    messages = [*HELLO["messages"], {"role": "assistant", "content": "hi", **keys}, {"role": "user", "content": "again"}]
    told, choice = await said(client, messages=messages)
    assert choice["message"]["content"] == ANSWER
    assert told.split(", ") == [f"messages.{name}" for name in keys]


async def test_nulls_of_history_are_left_out(client: Client) -> None:
    keys = dict.fromkeys(("function_call", "tool_calls", "audio", "refusal", "reasoning_content", "anything"))
    told, _ = await said(client, messages=[{"role": "assistant", "content": None, **keys}, *HELLO["messages"]])
    assert told == ""


async def test_text_parts_may_have_more_keys(client: Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    parts = ["he", {"type": "text", "text": "l", "cache_control": {"type": "ephemeral"}}, {"type": "input_text", "text": "lo"}]
    told, _ = await said(client, messages=[{"role": "user", "content": parts}])
    assert told == "content.cache_control"
    assert engine.requests[0].prompt_ids == tuple(tokenizer.chat(HELLO["messages"]))


async def test_parts_of_earlier_answers(client: Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "output_text", "text": "so "},
        {"type": "refusal", "refusal": "no"},
    ]
    told, _ = await said(client, messages=[{"role": "assistant", "content": parts}, *HELLO["messages"]])
    assert told == "content.thinking"
    assert tokenizer.decode(engine.requests[0].prompt_ids).startswith("assistant\nso no\n")


async def test_the_log_hears_of_a_field_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "specdec.server")
    for _ in range(3):
        await said(client, user="ada", cache_prompt=True)
    (line,) = [record.message for record in caplog.records if "without effect" in record.message]
    assert "cache_prompt, user" in line


async def test_a_stream_tells_too(client: Client) -> None:
    response = await client.post(CHAT, json=HELLO | {"user": "ada", "stream": True})
    assert response.headers[IGNORED] == "user"


def test_names_that_would_break_a_header_are_not_repeated() -> None:
    assert Told().header(["user", "a\r\nb", "ü", "x" * 99, "user"]) == "user, ?"
    assert len(Told().header(f"name{number}" for number in range(999))) < 1000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 2.0}, {"max_tokens": 2}),
        ({"top_k": 40.0}, {"top_k": 40}),
        ({"seed": 1.0}, {"seed": 1}),
        ({"seed": 2**64 - 1}, {"seed": 2**63 - 1}),
        ({"n": 1.0}, {}),
        ({"min_tokens": 2.0, "stop_token_ids": [44.0]}, {"min_tokens": 2, "stop_token_ids": (44,)}),
        ({"top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"temperature": 2.5}, {"temperature": 2.5}),
        ({"max_tokens": 10**30}, {"max_tokens": MAX_MODEL_LEN - 5}),
        ({"max_tokens": MAX_MODEL_LEN}, {"max_tokens": MAX_MODEL_LEN - 5}),
    ],
    ids=str,
)
async def test_values_as_clients_write_them(
    client: Client, engine: FakeEngine, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    await said(client, COMPLETION, prompt=[40.0] * 5, **fields)
    sampling = engine.requests[0].sampling
    assert engine.requests[0].prompt_ids == (40,) * 5
    assert {name: getattr(sampling, name) for name in expected} == expected


async def test_seed_minus_one_draws_anew(client: Client, engine: FakeEngine) -> None:
    for _ in range(2):
        await said(client, seed=-1)
    first, second = (request.sampling.seed for request in engine.requests)
    assert first != second


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_gets_the_room_that_there_is(client: Client, engine: FakeEngine, name: str) -> None:
    fields: dict[str, Any] = {name: 1_000_000}
    await said(client, **fields)
    request = engine.requests[0]
    assert len(request.prompt_ids) + request.sampling.max_tokens == MAX_MODEL_LEN


async def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenized(
    client: Client, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * (MAX_MODEL_LEN * tokenizer.longest_token * 4 + 1)
    monkeypatch.setattr(Tokenizer, "encode", lambda *_args, **_kwargs: pytest.fail("it was tokenized"))
    bodies: tuple[tuple[str, str, dict[str, Any]], ...] = (
        (COMPLETION, "prompt", {"prompt": long}),
        (CHAT, "messages", {"messages": [{"role": "user", "content": long}]}),
        (COMPLETION, "prediction", {"prompt": [40], "prediction": {"type": "content", "content": long}}),
        ("/tokenize", "prompt", {"prompt": long}),
    )
    for path, param, body in bodies:
        response = await client.post(path, json={"model": MODEL} | body)
        error = (await response.json())["error"]
        assert (response.status, error["param"], error["code"]) == (400, param, "context_length_exceeded")
        assert str(len(long)) in error["message"]
