"""What requests may ask for beside text: scores of prompts, token ids, counts, ends, templates, the model's own defaults."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from openai import AsyncOpenAI

from specdec.request import SamplingDefaults
from specdec.server.app import create_app
from specdec.text.tokenizer import Tokenizer
from tests.conftest import tiny_tokenizer
from tests.server.conftest import Client, OwnServer
from tests.server.fake_engine import ANSWER, MAX_MODEL_LEN, MODEL, FakeEngine, Script, assembled_with

pytestmark = pytest.mark.timeout(60)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "hello"}]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}:"
    "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}"
    "{% for key, value in call.function.arguments | items %}{{ key }}={{ value }};{% endfor %}{% endif %}]{% endfor %}|"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
    "{% if reasoning_effort %}{{ reasoning_effort }}{% endif %}{% endif %}"
)
NO_DEFAULTS = SamplingDefaults()
Serve = Callable[..., Any]


@pytest.fixture
async def serve(engine: FakeEngine) -> AsyncIterator[Serve]:
    """`await serve(template=..., defaults=...)` gives a client of a server with these."""
    clients: list[Client] = []

    async def go(template: str = TEMPLATE, defaults: SamplingDefaults = NO_DEFAULTS) -> Client:
        tokenizer = Tokenizer(tiny_tokenizer(), eos_token_ids=[2], chat_template=template)
        client: Client = TestClient(OwnServer(create_app(assembled_with(engine, tokenizer, defaults))))
        await client.start_server()
        clients.append(client)
        return client

    yield go
    for client in clients:
        await client.close()


async def post(client: Client, path: str, **fields: Any) -> dict[str, Any]:
    response = await client.post(path, json={"model": MODEL} | fields)
    assert response.status == 200, await response.text()
    found: dict[str, Any] = await response.json()
    return found


async def events(client: Client, path: str, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post(path, json={"model": MODEL, "stream": True} | fields)
    assert response.status == 200, await response.text()
    lines = [line.removeprefix("data: ") for line in (await response.text()).split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_the_models_own_defaults_are_the_requests(serve: Serve, engine: FakeEngine) -> None:
    client = await serve(defaults=SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95, min_p=0.01, suppress_tokens=(7,)))
    await post(client, COMPLETION, prompt="hello")
    await post(client, CHAT, messages=HELLO, temperature=0.2, top_k=-1, top_p=None, repetition_penalty=1.5)
    await post(client, CHAT, messages=HELLO, top_p=0)
    left_out, said, most_likely = (request.sampling for request in engine.requests)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "suppress_tokens")
    assert [getattr(left_out, name) for name in names] == [0.6, 20, 0.95, 0.01, 1.0, (7,)]
    assert [getattr(said, name) for name in names] == [0.2, 0, 0.95, 0.01, 1.5, (7,)]
    assert most_likely.greedy


async def test_echo_with_logprobs_scores_the_prompt(openai: AsyncOpenAI, tokenizer: Tokenizer) -> None:
    """As lm-eval asks: token ids in a batch, one token more, the token's own logprob among the top ones."""
    prompts = [tokenizer.encode("hello there"), tokenizer.encode("the winner")]
    found = await openai.completions.create(
        model=MODEL, prompt=prompts, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234
    )
    for choice, prompt in zip(found.choices, prompts, strict=True):
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        texts = [tokenizer.decode([token]) for token in prompt]
        assert logprobs.tokens[: len(prompt)] == texts
        assert "".join(logprobs.tokens) == choice.text
        assert logprobs.token_logprobs == [None, *[-0.25] * len(prompt)]
        assert logprobs.text_offset == [len("".join(logprobs.tokens[:i])) for i in range(len(prompt) + 1)]
        assert logprobs.top_logprobs is not None
        assert logprobs.top_logprobs[0] is None
        for token, top in zip(logprobs.tokens[1:], logprobs.top_logprobs[1:], strict=True):
            assert top is not None
            assert top[token] == max(top.values())


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("echo", [False, True])
async def test_no_tokens_may_be_asked_for(client: Client, engine: FakeEngine, echo: bool, logprobs: int | None) -> None:
    found = await post(client, COMPLETION, prompt="hello", max_tokens=0, echo=echo, logprobs=logprobs)
    (choice,) = found["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hello" if echo else "", "length")
    assert found["usage"]["completion_tokens"] == 0
    assert engine.requests[0].sampling.prompt_logprobs == (logprobs if echo else None)
    if logprobs is None:
        assert choice["logprobs"] is None
    else:
        num_tokens = len(engine.requests[0].prompt_ids) if echo else 0
        assert [len(values) for values in choice["logprobs"].values()] == [num_tokens] * 4


async def test_a_prompt_may_fill_the_context_where_no_tokens_are_asked_for(client: Client) -> None:
    found = await post(client, COMPLETION, prompt=[40] * MAX_MODEL_LEN, max_tokens=0, echo=True, logprobs=0)
    assert len(found["choices"][0]["logprobs"]["tokens"]) == MAX_MODEL_LEN


async def test_a_stream_echoes_the_prompts_logprobs_first(client: Client) -> None:
    asked: dict[str, Any] = {"prompt": "hello", "echo": True, "logprobs": 1, "max_tokens": 6}
    whole = (await post(client, COMPLETION, **asked))["choices"][0]
    pieces = [event["choices"][0] for event in await events(client, COMPLETION, **asked)]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for piece in pieces if piece["logprobs"] for value in piece["logprobs"][name]] == values


async def test_prompt_logprobs_by_name(client: Client, engine: FakeEngine) -> None:
    chat = await post(client, CHAT, messages=HELLO, prompt_logprobs=2, max_tokens=1)
    text = await post(client, COMPLETION, prompt="hello", prompt_logprobs=1, echo=True, logprobs=2, max_tokens=0)
    for told, request, top in zip(
        (chat["prompt_logprobs"], text["choices"][0]["prompt_logprobs"]), engine.requests, (2, 1), strict=True
    ):
        assert told[0] is None
        for token, entry in zip(request.prompt_ids[1:], told[1:], strict=True):
            assert entry[str(token)]["logprob"] == -0.25
            assert entry[str(token)]["rank"] == 1
            assert len(entry) == top
    assert engine.requests[1].sampling.prompt_logprobs == 2
    assert [len(top) for top in text["choices"][0]["logprobs"]["top_logprobs"][1:]] == [2] * (len(told) - 1)


async def test_token_ids(client: Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode(ANSWER), 2]
    for path, fields in ((CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "hello", "max_tokens": 99})):
        whole = await post(client, path, return_token_ids=True, **fields)
        prompt = list(engine.requests[-1].prompt_ids)
        (choice,) = whole["choices"]
        assert (whole if path == CHAT else choice)["prompt_token_ids"] == prompt
        assert choice["token_ids"] == ids
        chunks = await events(client, path, return_token_ids=True, **fields)
        assert (chunks[0] if path == CHAT else chunks[0]["choices"][0])["prompt_token_ids"] == prompt
        assert [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", ())] == ids
        assert "token_ids" not in (await post(client, path, **fields))["choices"][0]


async def test_counts_in_every_event(client: Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    """guidellm asks for both, and reads the last one."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await events(client, CHAT, messages=HELLO, stream_options=options)
    num_prompt, counts = len(engine.requests[0].prompt_ids), [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {num_prompt}
    assert counts == sorted(counts)
    assert len(set(counts)) >= 2, "events of a slow reader bring more"
    assert (counts[-1], chunks[-1]["choices"]) == (len(tokenizer.encode(ANSWER)) + 1, [])
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == ANSWER


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"stop": ["winner", " in the"]}, "the winner"),
        ({"stop": [" in the"]}, "the winner is in the"),
        ({"stop_token_ids": [tiny_tokenizer().token_to_id("Ġw")]}, "the w"),
        ({"stop": ["never"]}, ANSWER),
    ],
)
async def test_the_text_may_end_with_what_stopped_it(client: Client, fields: dict[str, Any], end: str) -> None:
    found = await post(client, COMPLETION, prompt="hello", max_tokens=99, include_stop_str_in_output=True, **fields)
    assert (found["choices"][0]["text"], found["choices"][0]["finish_reason"]) == (end, "stop")
    pieces = await events(client, COMPLETION, prompt="hello", max_tokens=99, include_stop_str_in_output=True, **fields)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == end


@pytest.mark.parametrize(
    ("fields", "prompt", "told"),
    [
        ({}, "<user>hello|<assistant>", ""),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "<user>hello|<assistant></think>", ""),
        ({"enable_thinking": False}, "<user>hello|<assistant></think>", ""),
        ({"reasoning_effort": "high"}, "<user>hello|<assistant>high", ""),
        ({"reasoning_effort": "none"}, "<user>hello|<assistant></think>none", ""),
        ({"chat_template_kwargs": {"thinking_mode": "x"}}, "<user>hello|<assistant>", "thinking_mode"),
        ({"add_generation_prompt": False}, "<user>hello|", ""),
        ({"continue_final_message": True}, "<user>hello", ""),
        ({"messages": [*HELLO, {"role": "assistant", "content": "It is "}], "continue_final_message": True},
         "<user>hello|<assistant>It is ", ""),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning_content": "hm"}]}, "<assistant>x(hm)|<assistant>", ""),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning": "hm"}]}, "<assistant>x(hm)|<assistant>", ""),
    ],
    ids=str,
)  # fmt: skip
async def test_templates_get_what_requests_say(
    serve: Serve, engine: FakeEngine, tokenizer: Tokenizer, fields: dict[str, Any], prompt: str, told: str
) -> None:
    response = await (await serve()).post(CHAT, json={"messages": HELLO} | fields)
    assert response.status == 200
    assert tokenizer.decode(engine.requests[0].prompt_ids) == prompt
    assert response.headers.get("x-specdec-ignored", "") == told


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [('{"city": "Rome", "days": 2}', "city=Rome;days=2;"), ({"city": "Rome"}, "city=Rome;"), ("", ""), ("{broken", "{broken")],
)
async def test_history_with_tool_calls(
    serve: Serve, engine: FakeEngine, tokenizer: Tokenizer, arguments: Any, shown: str
) -> None:
    call = {"id": "call_1", "type": "function", "index": 0, "function": {"name": "weather", "arguments": arguments}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "sunny"},
    ]
    await post(await serve(), CHAT, messages=messages)
    assert tokenizer.decode(engine.requests[0].prompt_ids) == (
        f"<user>hello|<assistant>[weather:{shown}]|<tool>sunny|<assistant>"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[7].content }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ 'x' * 10 ** 30 }}",
        "{{ [1] | join | int | tojson(bad=1) }}",
        "{% if %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
async def test_whatever_fails_in_a_template_is_told(serve: Serve, template: str) -> None:
    client = await serve(template=template)
    response = await client.post(CHAT, json={"messages": HELLO})
    error = (await response.json())["error"]
    assert (response.status, error["param"], error["type"]) == (400, "messages", "invalid_request_error")
    assert "template" in error["message"]


async def test_salts_reach_the_engine(client: Client, engine: FakeEngine) -> None:
    await post(client, CHAT, messages=HELLO, cache_salt="tenant-a")
    await post(client, COMPLETION, prompt="hello")
    assert [request.cache_salt for request in engine.requests] == ["tenant-a", ""]


async def test_an_answer_without_tokens_is_not_followed_by_another(client: Client, engine: FakeEngine) -> None:
    engine.scripts["hello"] = Script(answers=("",))
    found = await post(client, CHAT, messages=HELLO)
    assert (found["choices"][0]["message"]["content"], found["choices"][0]["finish_reason"]) == ("", "stop")
