"""The official openai client against the server: what it sends is understood, what it gets it can read."""

import asyncio
from typing import Any

import openai as openai_package
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion

from specdec.request import SamplingParams
from specdec.text.tokenizer import Tokenizer
from tests.server.conftest import Client, Start
from tests.server.fake_engine import ANSWER, MAX_MODEL_LEN, MODEL, NUM_CACHED, FakeEngine, Script

pytestmark = pytest.mark.timeout(60)
HELLO: Any = [{"role": "user", "content": "hello"}]


async def chat(client: AsyncOpenAI, **fields: Any) -> ChatCompletion:
    found: ChatCompletion = await client.chat.completions.create(**{"model": MODEL, "messages": HELLO} | fields)
    return found


async def test_a_chat_completion(openai: AsyncOpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    found = await chat(openai)
    assert (found.object, found.model) == ("chat.completion", MODEL)
    assert found.id.startswith("chatcmpl-")
    assert found.created > 1_700_000_000
    (choice,) = found.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    prompt_ids = tokenizer.chat(HELLO)
    assert engine.requests[0].prompt_ids == tuple(prompt_ids)
    assert found.usage is not None
    num_answer = len(tokenizer.encode(ANSWER)) + 1  # and the token that ends it
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt_ids), num_answer)
    assert found.usage.total_tokens == len(prompt_ids) + num_answer


async def test_a_completion(openai: AsyncOpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    found = await openai.completions.create(model=MODEL, prompt="hello there", max_tokens=100)
    assert (found.object, found.model) == ("text_completion", MODEL)
    assert found.id.startswith("cmpl-")
    (choice,) = found.choices
    assert (choice.index, choice.finish_reason, choice.text, choice.logprobs) == (0, "stop", ANSWER, None)
    assert engine.requests[0].prompt_ids == tuple(tokenizer.encode("hello there"))
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(tokenizer.encode("hello there"))
    assert found.usage.completion_tokens == len(tokenizer.encode(ANSWER)) + 1


async def test_a_completion_has_16_tokens_unless_told_otherwise(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    found = await openai.completions.create(model=MODEL, prompt="hello")
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert found.usage.completion_tokens == engine.requests[0].sampling.max_tokens == 16


async def test_a_chat_may_fill_the_context_unless_told_otherwise(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    await chat(openai)
    request = engine.requests[0]
    assert len(request.prompt_ids) + request.sampling.max_tokens == MAX_MODEL_LEN


async def test_a_prompt_of_token_ids(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    await openai.completions.create(model=MODEL, prompt=[40, 41, 42])
    assert engine.requests[0].prompt_ids == (40, 41, 42)


async def test_echo_gives_the_prompt_back_before_the_answer(openai: AsyncOpenAI) -> None:
    found = await openai.completions.create(model=MODEL, prompt="hello: ", echo=True, max_tokens=100)
    assert found.choices[0].text == "hello: " + ANSWER


async def test_messages_of_every_kind_reach_the_template(openai: AsyncOpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    messages: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi", "name": "ada"},
        {"role": "assistant", "content": "hi yourself"},
        {"role": "user", "content": parts},
    ]
    await chat(openai, messages=messages)
    text = tokenizer.decode(engine.requests[0].prompt_ids)
    assert text == "system\nbe brief\nuser\nhi\nassistant\nhi yourself\nuser\nhello\nassistant\n"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "stop": (), "logprobs": None, "ignore_eos": False}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_p": 0.5, "seed": 7}, {"top_p": 0.5, "seed": 7}),
        ({"presence_penalty": -1.5, "frequency_penalty": 2}, {"presence_penalty": -1.5, "frequency_penalty": 2.0}),
        ({"logit_bias": {"40": -100, "41": 5}}, {"logit_bias": {40: -100.0, 41: 5.0}}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "yz"]}, {"stop": ("x", "yz")}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"extra_body": {"top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5}},
         {"top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5}),
        ({"extra_body": {"ignore_eos": True, "min_tokens": 4, "stop_token_ids": [44]}},
         {"ignore_eos": True, "min_tokens": 4, "stop_token_ids": (44,)}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("endpoint", ["chat", "completion"])
async def test_sampling_fields_reach_the_engine(
    openai: AsyncOpenAI, engine: FakeEngine, endpoint: str, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    if endpoint == "chat":
        await chat(openai, **fields)
    else:
        await openai.completions.create(model=MODEL, prompt="hello", **fields)
    sampling: SamplingParams = engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in expected} == expected


async def test_max_completion_tokens_is_the_newer_name(openai: AsyncOpenAI, tokenizer: Tokenizer) -> None:
    found = await chat(openai, max_completion_tokens=5)
    assert found.choices[0].finish_reason == "length"
    assert found.choices[0].message.content == tokenizer.decode(tokenizer.encode(ANSWER)[:5])


async def test_null_means_not_given(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    names = (
        "temperature",
        "top_p",
        "n",
        "seed",
        "stop",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "prediction",
        "stream_options",
    )
    await chat(openai, extra_body=dict.fromkeys(names))
    assert engine.requests[0].sampling.temperature == 1.0


async def test_unseeded_requests_draw_different_seeds(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    for _ in range(2):
        await chat(openai)
    first, second = (request.sampling.seed for request in engine.requests)
    assert first != second


async def test_a_stop_string_ends_the_text_before_it(openai: AsyncOpenAI) -> None:
    found = await chat(openai, stop=[" in the", "never"])
    assert found.choices[0].message.content == ANSWER[: ANSWER.index(" in the")]
    assert found.choices[0].finish_reason == "stop"


async def test_several_choices(openai: AsyncOpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    answers = ("first", "the second", "and a third one")
    engine.scripts["hello"] = Script(answers=answers)
    found = await chat(openai, n=3, seed=5)
    assert [(choice.index, choice.message.content) for choice in found.choices] == list(enumerate(answers))
    assert len({request.request_id for request in engine.requests}) == 3
    assert len({request.sampling.seed for request in engine.requests}) == 3, "choices are drawn apart"
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(tokenizer.chat(HELLO)), "the prompt counts once"
    assert found.usage.completion_tokens == sum(len(tokenizer.encode(answer)) + 1 for answer in answers)
    assert "metrics" not in (found.model_extra or {}), "statistics belong to one sequence"


async def test_a_seed_gives_the_same_choices_again(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    for _ in range(2):
        await chat(openai, n=3, seed=5)
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[:3] == seeds[3:]


async def test_chat_logprobs(openai: AsyncOpenAI, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    found = await chat(openai, logprobs=True, top_logprobs=2, max_tokens=6)
    choice = found.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert "".join(entry.token for entry in content) == choice.message.content
    assert len(content) == 6
    for entry, token in zip(content, tokenizer.encode(ANSWER)[:6], strict=True):
        assert (entry.logprob, entry.bytes) == (-0.25, list(tokenizer.token_bytes(token)))
        assert [top.logprob for top in entry.top_logprobs] == [-0.25, -12.0]
        assert entry.top_logprobs[0].token == entry.token


async def test_chat_logprobs_without_alternatives(openai: AsyncOpenAI) -> None:
    found = await chat(openai, logprobs=True, max_tokens=2)
    assert found.choices[0].logprobs is not None
    assert [entry.top_logprobs for entry in found.choices[0].logprobs.content or ()] == [[], []]


async def test_completion_logprobs(openai: AsyncOpenAI) -> None:
    found = await openai.completions.create(model=MODEL, prompt="hello", logprobs=2, max_tokens=6)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.tokens
    assert tokens is not None
    assert "".join(tokens) == found.choices[0].text
    assert logprobs.token_logprobs == [-0.25] * 6
    assert logprobs.text_offset == [len("".join(tokens[:i])) for i in range(6)]
    assert [top[token] for top, token in zip(logprobs.top_logprobs or (), tokens, strict=True)] == [-0.25] * 6


@pytest.mark.parametrize("content", ["inner", [{"type": "text", "text": "in"}, {"type": "text", "text": "ner"}]])
async def test_a_prediction(openai: AsyncOpenAI, engine: FakeEngine, tokenizer: Tokenizer, content: Any) -> None:
    found = await chat(openai, prediction={"type": "content", "content": content})
    assert engine.requests[0].prediction_ids == tuple(tokenizer.encode("inner", add_special_tokens=False))
    assert found.usage is not None
    details = found.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (2, 4)
    assert found.usage.prompt_tokens_details is not None
    assert found.usage.prompt_tokens_details.cached_tokens == NUM_CACHED


async def test_speculation_is_the_requests_own_choice(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    await chat(openai)
    await chat(openai, extra_body={"speculative": {"enabled": False}})
    await chat(openai, extra_body={"speculative": {"max_nodes": 3, "drafter": "suffix"}})
    default, off, narrow = (request.speculation for request in engine.requests)
    assert (default.enabled, default.max_nodes, default.drafter) == (True, None, None)
    assert not off.enabled
    assert (narrow.enabled, narrow.max_nodes, narrow.drafter) == (True, 3, "suffix")


async def test_the_response_tells_what_speculation_did(openai: AsyncOpenAI) -> None:
    expected = {
        "mean_acceptance_length": 1.8,
        "draft_acceptance_rate": 0.4,
        "acceptance_histogram": [2, 2, 1],
        "num_spec_steps": 5,
        "num_accepted_draft_tokens": 4,
        "num_draft_tokens": 10,
        "num_spec_tokens": 2,
    }
    for found in (await chat(openai), await openai.completions.create(model=MODEL, prompt="hello")):
        assert (found.model_extra or {})["metrics"]["speculative_decoding"] == expected


async def test_models(openai: AsyncOpenAI) -> None:
    (model,) = [model async for model in openai.models.list()]
    assert (model.id, model.object) == (MODEL, "model")
    assert (await openai.models.retrieve(MODEL)).id == MODEL, "names may have slashes"
    with pytest.raises(openai_package.NotFoundError) as caught:
        await openai.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


async def test_a_model_that_is_not_served_is_not_found(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_package.NotFoundError, match="gpt-9") as caught:
        await chat(openai, model="gpt-9")
    assert caught.value.code == "model_not_found"
    assert MODEL in str(caught.value), "the message names what is served"


async def test_a_served_name_replaces_the_models_own(start: Start) -> None:
    client = await start(served_model_name="house-model")
    async with AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="any", max_retries=0) as openai:
        assert [model.id async for model in openai.models.list()] == ["house-model"]
        assert (await chat(openai, model="house-model")).model == "house-model"
        with pytest.raises(openai_package.NotFoundError):
            await chat(openai)


async def test_an_api_key_is_asked_for(start: Start) -> None:
    client = await start(api_keys=["sesame"])
    url = str(client.make_url("/v1"))
    async with AsyncOpenAI(base_url=url, api_key="sesame", max_retries=0) as right:
        assert (await chat(right)).choices[0].message.content == ANSWER
    async with AsyncOpenAI(base_url=url, api_key="sesam", max_retries=0) as wrong:
        with pytest.raises(openai_package.AuthenticationError) as caught:
            await chat(wrong)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai_package.AuthenticationError):
            await wrong.models.list()
    for headers in ({}, {"Authorization": "sesame"}, {"Authorization": "Basic sesame"}, {"Authorization": "Bearer ü"}):
        refused = await client.get("/v1/models", headers=headers)
        assert refused.status == 401
        error = (await refused.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "sesame" not in error["message"]
    for path in ("/health", "/metrics"):
        assert (await client.get(path)).status == 200


async def test_the_blocking_client(client: Client, engine: FakeEngine) -> None:
    def talk() -> tuple[str | None, str]:
        with OpenAI(base_url=str(client.make_url("/v1")), api_key="any", max_retries=0) as blocking:
            whole = blocking.chat.completions.create(model=MODEL, messages=HELLO)
            stream = blocking.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
        return whole.choices[0].message.content, "".join(pieces)

    assert await asyncio.to_thread(talk) == (ANSWER, ANSWER)


async def test_32_requests_at_once(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    for i in range(32):
        engine.scripts[f"number {i}."] = Script(answers=(f"answer {i}",), per_step=1 + i % 3)
    found = await asyncio.gather(
        *(chat(openai, messages=[{"role": "user", "content": f"number {i}."}], temperature=0) for i in range(32))
    )
    assert [completion.choices[0].message.content for completion in found] == [f"answer {i}" for i in range(32)]
    assert len({completion.id for completion in found}) == 32


async def test_a_prompt_that_is_too_long(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai_package.BadRequestError) as caught:
        await openai.completions.create(model=MODEL, prompt=[40] * 321)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    assert "321" in caught.value.message
    assert str(MAX_MODEL_LEN) in caught.value.message
    assert not engine.requests


async def test_a_chat_that_is_too_long(openai: AsyncOpenAI, tokenizer: Tokenizer) -> None:
    messages: Any = [{"role": "user", "content": "x" * 300}]
    with pytest.raises(openai_package.BadRequestError) as caught:
        await chat(openai, messages=messages)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert str(len(tokenizer.chat(messages))) in caught.value.message
    assert str(MAX_MODEL_LEN) in caught.value.message
