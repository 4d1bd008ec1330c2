"""What is refused: each bad request gets OpenAI's error shape, the field at fault, and words that help."""

import json
from typing import Any

import pytest

from specdec.text.tokenizer import Tokenizer
from tests.server.conftest import Client, Poll
from tests.server.fake_engine import MAX_MODEL_LEN, MODEL, FakeEngine, Script

pytestmark = pytest.mark.timeout(60)
AS_JSON = {"Content-Type": "application/json"}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]},
    COMPLETION: {"model": MODEL, "prompt": "hello"},
}
Case = tuple[dict[str, Any], str, str]  # fields, param, words of the message

BOTH: list[Case] = [
    ({"model": 7}, "model", "string"),
    ({"temprature": 1}, "temprature", "temprature"),
    ({"temprature": 1}, "temprature", "did you mean temperature?"),
    ({"__proto__": 1}, "__proto__", "not a field"),
    ({"dry_multiplier": 0.8}, "dry_multiplier", "leave it out"),
    ({"xtc_probability": 0.1}, "xtc_probability", "leave it out"),
    ({"mirostat": 2}, "mirostat", "leave it out"),
    ({"guided_json": {"type": "object"}}, "guided_json", "leave it out"),
    ({"repeat_penalty": 1.1}, "repeat_penalty", "use repetition_penalty"),
    ({"max_new_tokens": 5}, "max_new_tokens", "use max_tokens"),
    ({"skip_special_tokens": False}, "skip_special_tokens", "leave it out"),
    ({"extra_body": {"top_k": 5}}, "extra_body", "beside the others"),
    ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "shorten"),
    ({"cache_salt": 5}, "cache_salt", "string"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "20"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream"),
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"temperature": 100.1}, "temperature", "100.1"),
    ({"temperature": "1"}, "temperature", "number"),
    ({"temperature": True}, "temperature", "number"),
    ({"temperature": [1]}, "temperature", "number"),
    ({"top_p": -0.1}, "top_p", "above 0 and at most 1"),
    ({"top_p": 1.1}, "top_p", "1.1"),
    ({"top_p": "all"}, "top_p", "all"),
    ({"top_k": -2}, "top_k", "-2"),
    ({"top_k": 1.5}, "top_k", "integer"),
    ({"min_p": -0.5}, "min_p", "between 0 and 1"),
    ({"min_p": 1.5}, "min_p", "1.5"),
    ({"repetition_penalty": 0}, "repetition_penalty", "between 0.01"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty", "between 0.01"),
    ({"repetition_penalty": 11}, "repetition_penalty", "11"),
    ({"presence_penalty": -2.5}, "presence_penalty", "between -2 and 2"),
    ({"presence_penalty": 2.5}, "presence_penalty", "2.5"),
    ({"frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
    ({"frequency_penalty": "x"}, "frequency_penalty", "number"),
    ({"logit_bias": {"40": 101}}, "logit_bias", "between -100 and 100"),
    ({"logit_bias": {"40": "1"}}, "logit_bias[40]", "number"),
    ({"logit_bias": {"cat": 1}}, "logit_bias", "cat"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "-1"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "99999"),
    ({"logit_bias": [1]}, "logit_bias", "dictionary"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"seed": 2**64}, "seed", "seed"),
    ({"stop": ["x", ""]}, "stop", "non-empty"),
    ({"stop": [str(i) for i in range(17)]}, "stop", "16"),
    ({"stop": ["x", "y" * 257]}, "stop[1]", "256 characters"),
    ({"stop": 5}, "stop", "stop"),
    ({"stop": ["x", 5]}, "stop[1]", "string"),
    ({"stop_token_ids": [99999]}, "stop_token_ids", "99999"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "-1"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]", "integer"),
    ({"max_tokens": -3}, "max_tokens", "-3"),
    ({"max_tokens": 2.5}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"min_tokens": -1}, "min_tokens", "-1"),
    ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "max_tokens"),
    ({"ignore_eos": "yes"}, "ignore_eos", "boolean"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 1000}, "n", "128"),
    ({"n": 1.5}, "n", "integer"),
    ({"stream": "true"}, "stream", "boolean"),
    ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use", "include_use"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "boolean"),
    ({"stream": True, "stream_options": []}, "stream_options", "stream_options"),
    ({"prediction": "text"}, "prediction", "prediction"),
    ({"prediction": {"type": "content"}}, "prediction.content", "required"),
    ({"prediction": {"type": "guess", "content": "x"}}, "prediction.type", "content"),
    ({"prediction": {"type": "content", "content": 5}}, "prediction.content", "string"),
    ({"prediction": {"type": "content", "content": [{"type": "image"}]}}, "prediction.content", "text parts"),
    ({"prediction": {"type": "content", "content": "x", "weight": 2}}, "prediction.weight", "weight"),
    ({"speculative": True}, "speculative", "speculative"),
    ({"speculative": {"drafter": "eagle"}}, "speculative.drafter", "ngram, suffix, prediction"),
    ({"speculative": {"max_nodes": 0}}, "speculative.max_nodes", "1 or more"),
    ({"speculative": {"max_nodes": "many"}}, "speculative.max_nodes", "integer"),
    ({"speculative": {"enabled": 1}}, "speculative.enabled", "boolean"),
    ({"speculative": {"enable": False}}, "speculative.enable", "enable"),
]  # fmt: skip

CHAT_ONLY: list[Case] = [
    ({"messages": None}, "messages", "required"),
    ({"messages": []}, "messages", "messages"),
    ({"messages": "hello"}, "messages", "list"),
    ({"messages": ["hello"]}, "messages[0]", "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"content": "hello"}]}, "messages[0].role", "required"),
    ({"messages": [{"role": "wizard", "content": "hello"}]}, "messages[0].role", "wizard"),
    ({"messages": [{"role": "user", "content": "hello"}, {"role": "user", "content": 5}]}, "messages[1].content", "string"),
    ({"messages": [{"role": "user", "content": "hello", "mood": "good"}]}, "messages[0].mood", "mood"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "text parts"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content", "string"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
     "messages[0].content", "text parts"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
     "messages[0].content", "text parts"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
     "messages[0].tool_calls[0].function", "required"),
    ({"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}]},
     "messages[0].function_call", "no functions"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "required"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "field of its own"),
    ({"chat_template_kwargs": "thinking"}, "chat_template_kwargs", "dictionary"),
    ({"chat_template": "{{ messages }}"}, "chat_template", "own template"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "exclude"),
    ({"best_of": 2}, "best_of", "ask for them with n"),
    ({"prompt": "hello"}, "prompt", "prompt"),
    ({"max_completion_tokens": -2}, "max_completion_tokens", "0 or more"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "max_completion_tokens"),
    ({"logprobs": 2}, "logprobs", "boolean"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"top_logprobs": 2, "logprobs": False}, "top_logprobs", "needs logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "20"),
    ({"top_logprobs": -1, "logprobs": True}, "top_logprobs", "0"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "supported"),
    ({"tool_choice": "required"}, "tool_choice", "supported"),
    ({"functions": [{"name": "f"}]}, "functions", "supported"),
    ({"function_call": {"name": "f"}}, "function_call", "supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "supported"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}, "response_format", "supported"),
    ({"response_format": "text"}, "response_format", "response_format"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "supported"),
    ({"modalities": ["text", "audio"]}, "modalities", "supported"),
    ({"reasoning_effort": 5}, "reasoning_effort", "string"),
    ({"web_search_options": {}}, "web_search_options", "supported"),
    ({"echo": True}, "echo", "echo"),
]  # fmt: skip

COMPLETION_ONLY: list[Case] = [
    ({"prompt": None}, "prompt", "required"),
    ({"prompt": ""}, "prompt", "no tokens"),
    ({"prompt": []}, "prompt", "not empty"),
    ({"prompt": [[]]}, "prompt", "no tokens"),
    ({"prompt": ["hello", ""]}, "prompt", "no tokens"),
    ({"prompt": ["hello", 5]}, "prompt", "list of"),
    ({"prompt": {"text": "hello"}}, "prompt", "string"),
    ({"prompt": [1.5]}, "prompt", "list of"),
    ({"prompt": [True]}, "prompt", "list of"),
    ({"prompt": [99999]}, "prompt", "99999"),
    ({"prompt": [-1]}, "prompt", "-1"),
    ({"prompt": [10**30], "echo": True}, "prompt", str(10**30)),
    ({"prompt": [[40], [-1]], "echo": True, "logprobs": 1}, "prompt", "-1"),
    ({"messages": [{"role": "user", "content": "hello"}]}, "messages", "messages"),
    ({"logprobs": True}, "logprobs", "integer"),
    ({"logprobs": 21}, "logprobs", "20"),
    ({"logprobs": -1}, "logprobs", "0"),
    ({"echo": 1}, "echo", "boolean"),
    ({"best_of": 2}, "best_of", "best_of"),
    ({"best_of": 1, "n": 2}, "best_of", "n (2)"),
    ({"suffix": "end"}, "suffix", "not a field"),
    ({"top_logprobs": 2}, "top_logprobs", "top_logprobs"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "max_completion_tokens"),
]  # fmt: skip

CASES = (
    [(path, *case) for path in GOOD for case in BOTH]
    + [(CHAT, *case) for case in CHAT_ONLY]
    + [(COMPLETION, *case) for case in COMPLETION_ONLY]
)


async def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error object of a refusal, its shape checked."""
    assert response.status == status, await response.text()
    assert response.content_type == "application/json"
    body: dict[str, dict[str, Any]] = await response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return body["error"]


@pytest.mark.parametrize(("path", "fields", "param", "words"), CASES, ids=lambda value: str(value)[:60])
async def test_a_bad_value_is_refused_by_name(
    client: Client, engine: FakeEngine, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    error = await error_of(await client.post(path, json=GOOD[path] | fields), 400)
    assert error["param"] == param
    assert words in error["message"]
    assert param.partition("[")[0].partition(".")[0] in error["message"] or words == "no tokens"
    assert error["code"]
    assert len(error["message"]) < 500
    assert engine.status().num_running + engine.status().num_waiting == 0


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "raw", ["", "{", "nonsense", '{"model": NaN}', '{"model": "a"} x', "\ud800".encode("utf-8", "surrogatepass"), b"\xff"]
)
async def test_a_body_that_is_not_json_is_refused(client: Client, path: str, raw: str | bytes) -> None:
    error = await error_of(await client.post(path, data=raw, headers=AS_JSON), 400)
    assert "JSON" in error["message"]
    assert error["param"] is None


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("body", [[], "text", 5, None, [GOOD[CHAT]]])
async def test_a_body_that_is_no_object_is_refused(client: Client, path: str, body: Any) -> None:
    error = await error_of(await client.post(path, data=json.dumps(body), headers=AS_JSON), 400)
    assert "JSON object" in error["message"]


@pytest.mark.parametrize("path", GOOD)
async def test_numbers_that_json_does_not_know_are_refused(client: Client, path: str) -> None:
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        raw = json.dumps(GOOD[path] | {"temperature": 1.0}).replace("1.0", word)
        await error_of(await client.post(path, data=raw, headers=AS_JSON), 400)


@pytest.mark.parametrize("path", GOOD)
async def test_deep_nesting_is_refused(client: Client, path: str) -> None:
    await error_of(await client.post(path, data='{"model":' + "[" * 100_000 + "]" * 100_000 + "}", headers=AS_JSON), 400)


async def test_a_prompt_that_is_too_long_is_told_in_numbers(client: Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    cases: tuple[tuple[str, str, dict[str, Any], int | None], ...] = (
        (COMPLETION, "prompt", {"prompt": [40] * 321}, 321),
        (COMPLETION, "prompt", {"prompt": ["hello", [40] * 321][1]}, 321),
        (COMPLETION, "prompt", {"prompt": [40] * MAX_MODEL_LEN, "max_tokens": 1}, MAX_MODEL_LEN),
        (CHAT, "messages", {"messages": [{"role": "user", "content": "x" * 300}]}, None),
    )
    for path, param, fields, length in cases:
        length = length or len(tokenizer.chat(fields["messages"]))
        error = await error_of(await client.post(path, json=GOOD[path] | fields), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert str(length) in error["message"]
        assert str(MAX_MODEL_LEN) in error["message"]
    assert not engine.requests


async def test_what_fits_exactly_is_served(client: Client) -> None:
    body = {"model": MODEL, "prompt": [40] * (MAX_MODEL_LEN - 5), "max_tokens": 5}
    response = await client.post(COMPLETION, json=body)
    assert response.status == 200
    assert (await response.json())["usage"]["total_tokens"] == MAX_MODEL_LEN


async def test_one_bad_prompt_of_several_runs_none(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts[""] = Script(pause_after=0)
    body = {"model": MODEL, "prompt": [[40, 41], [40] * 321], "max_tokens": 100}
    await error_of(await client.post(COMPLETION, json=body), 400)
    await poll.until(lambda: engine.aborted)
    assert engine.aborted == [request.request_id for request in engine.requests]
    assert engine.status().num_running + engine.status().num_waiting == 0


async def test_a_bad_streamed_request_is_refused_before_its_stream(client: Client) -> None:
    for path, body in GOOD.items():
        await error_of(await client.post(path, json=body | {"stream": True, "temperature": -9}), 400)
        await error_of(await client.post(path, json=body | {"stream": True, "logit_bias": {"99999": 1}}), 400)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"response_format": {"type": "text"}}),
        (CHAT, {"tool_choice": "none", "modalities": ["text"], "max_tokens": 5, "max_completion_tokens": 5}),
        (CHAT, {"messages": [{"role": "developer", "content": "be kind"}, {"role": "user", "content": "hello"}]}),
        (CHAT, {"messages": [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None}]}),
        (CHAT, {"stop": [str(i) for i in range(16)], "top_logprobs": 20, "logprobs": True}),
        (CHAT, {"stream_options": None, "logit_bias": {}, "stop": [], "prediction": {"type": "content", "content": ""}}),
        (COMPLETION, {"best_of": 2, "n": 2}),
        (COMPLETION, {"best_of": 1, "suffix": None, "logprobs": 0}),
        (COMPLETION, {"prompt": ["hello", "there"]}),
        (COMPLETION, {"prompt": [[40], [41, 42]]}),
        (COMPLETION, {"temperature": 2, "top_p": 1, "min_p": 1, "top_k": -1, "presence_penalty": -2, "seed": -1}),
        (COMPLETION, {"user": "ada", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}),
    ],
    ids=str,
)
async def test_what_is_just_allowed_is_served(client: Client, path: str, fields: dict[str, Any]) -> None:
    response = await client.post(path, json=GOOD[path] | fields)
    assert response.status == 200, await response.text()


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/", 405, "GET"),
        ("OPTIONS", "/v1/nothing", 404, "/v1/nothing"),
        ("GET", "/v1/nothing", 404, "/v1/nothing"),
        ("POST", "/v1/embeddings", 404, "/v1/embeddings"),
        ("GET", "/v1/models/gpt-9", 404, "gpt-9"),
        ("GET", CHAT, 405, "POST"),
        ("DELETE", COMPLETION, 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("POST", "/health", 405, "GET"),
    ],
)
async def test_unknown_paths_and_methods(client: Client, method: str, path: str, status: int, words: str) -> None:
    response = await client.request(method, path)
    assert words in (await error_of(response, status))["message"]
    if status == 405:
        assert words in response.headers["Allow"]


@pytest.mark.parametrize("path", GOOD)
async def test_an_unknown_model_is_not_found(client: Client, path: str) -> None:
    error = await error_of(await client.post(path, json=GOOD[path] | {"model": "gpt-9"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize("path", GOOD)
async def test_a_body_that_is_too_large(client: Client, path: str) -> None:
    error = await error_of(await client.post(path, data=b" " * (33 * 1024 * 1024), headers=AS_JSON), 413)
    assert error["code"]
    assert "32 MB" in error["message"]
