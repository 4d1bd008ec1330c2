"""The engine on tiny models: the same bits however a request is served, and nobody else's trouble."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec import assemble
from specdec.cache.attention import KVPool, cache_dtype
from specdec.config import EngineConfig
from specdec.errors import RequestError, RoundError
from specdec.llm import LLM, Completion
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationParams

TinyCheckpoint = Callable[..., Path]
LONG = tuple((i * 7) % 250 + 3 for i in range(70))
PROMPTS = (LONG, (*LONG[:33], 9, 8, 7), (5,), tuple(range(10, 50)), (*LONG[:48], 200))
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "seed": 2},
    {"temperature": 1.0, "seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.8, "seed": 4, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.0, "frequency_penalty": 1.0, "logit_bias": {7: 3.0, 8: -100.0}, "min_tokens": 12},
)


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
FAMILIES = [
    pytest.param((family, device), id=f"{family} {device}", marks=ON_GPU if device == "cuda" else [])
    for device in ("cpu", "cuda")
    for family in ("llama", "qwen3_moe")
]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> assemble.LoadedModel:
    family, device = request.param
    dtype = "float32" if device == "cpu" else "bfloat16"
    return assemble.load(EngineConfig(model=str(tiny_checkpoint(family)), dtype=dtype, device=device))


def page_size(loaded: assemble.LoadedModel) -> int:
    return 16 if loaded.model.device.type == "cpu" else 64


def config(loaded: assemble.LoadedModel, **fields: Any) -> EngineConfig:
    defaults: dict[str, Any] = {"page_size": page_size(loaded), "cache_gb": 0.01, "drafters": (), "device_loop": False}
    device = loaded.model.device.type
    return EngineConfig(
        model=loaded.name, dtype="float32" if device == "cpu" else "bfloat16", device=device, **defaults | fields
    )


def llm(loaded: assemble.LoadedModel, oracle: dict[str, Sequence[int]] | None = None, **fields: Any) -> LLM:
    return LLM(assemble.build(config(loaded, **fields), loaded=loaded, oracle=oracle))


def requests(max_tokens: int = 24) -> list[Request]:
    return [
        Request(
            request_id=f"{p}-{s}",
            prompt_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, logprobs=2, **{"ignore_eos": s % 2 == 0} | sampling),
            prediction_ids=prompt[:20],
        )
        for (p, prompt), (s, sampling) in itertools.product(enumerate(PROMPTS), enumerate(SAMPLINGS))
    ]


def content(completion: Completion) -> tuple[object, ...]:
    return completion.token_ids, completion.text, completion.logprobs, completion.finish_reason, completion.stop_reason


@pytest.fixture(scope="module")
def expected(loaded: assemble.LoadedModel) -> dict[str, Completion]:
    """Every request alone, without speculation, prefix cache or chunks."""
    alone = llm(loaded, max_batch=1, prefix_cache=False, chunk_tokens=1000)
    found = {request.request_id: alone.generate([request])[0] for request in requests()}
    assert len({tuple(done.token_ids) for done in found.values()}) > len(found) // 2, "the requests differ"
    return found


def oracle_of(expected: dict[str, Completion]) -> dict[str, Sequence[int]]:
    return {name: done.token_ids for name, done in expected.items()}


@pytest.mark.parametrize(
    "fields",
    [
        {"drafters": ()},
        {"drafters": ("adversarial",), "adaptive": False, "max_batch": 1},
        {"drafters": ("adversarial",), "adaptive": False},
        {"drafters": ("adversarial",), "adaptive": False, "chunk_tokens": 7},
        {"drafters": ("ngram", "suffix", "prediction", "adversarial"), "max_tree_nodes": 24, "adaptive": False},
        {"drafters": ("ngram", "suffix", "prediction")},
        {"drafters": ("adversarial",), "adaptive": False, "prefix_cache": False, "max_tree_nodes": 5},
    ],
    ids=["batched", "trees alone", "trees batched", "chunks of 7", "all drafters", "planned", "no prefix cache"],
)
def test_nothing_changes_a_bit(loaded: assemble.LoadedModel, expected: dict[str, Completion], fields: dict[str, Any]) -> None:
    engine = llm(loaded, oracle=oracle_of(expected), **fields)
    for _again in range(2):  # the second time the prefixes are cached
        done = engine.generate(requests())
        for found in done:
            assert content(found) == content(expected[found.request_id]), found.request_id
        engine.engine.check()
    status = engine.engine.status()
    assert (status.num_running, status.num_waiting, status.pages_used) == (0, 0, 0)
    if "adversarial" in fields["drafters"]:
        accepted = sum(found.stats.num_accepted_tokens for found in done)
        drafted = sum(found.stats.num_draft_tokens for found in done)
        assert 0 < accepted < drafted
    if fields.get("prefix_cache", True):
        assert any(found.num_cached_tokens for found in done)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_preemption_changes_no_bit(loaded: assemble.LoadedModel, prefix_cache: bool) -> None:
    """Answers outgrow their pages by more than the one that admission leaves to each."""
    model, size = loaded.model, page_size(loaded)
    asked = requests(max_tokens=3 * size)[::2]
    alone = llm(loaded, max_batch=1, prefix_cache=False, chunk_tokens=1000)
    expected = [alone.generate([request])[0] for request in asked]
    page_bytes = KVPool.page_bytes(model.cache_specs, size, cache_dtype(model.dtype, model.device))
    num_pages = -(-(len(LONG) + 3 * size) // size) + 3
    tight = llm(loaded, cache_gb=page_bytes * (num_pages + 0.01) / 1e9, prefix_cache=prefix_cache)
    for found, wanted in zip(tight.generate(asked), expected, strict=True):
        assert content(found) == content(wanted), found.request_id
    assert tight.engine.status().num_preemptions > 0
    tight.engine.check()


def test_a_draft_model_changes_no_bit(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], tiny_checkpoint: TinyCheckpoint
) -> None:
    for folder, accepts in ((loaded.name, True), (str(tiny_checkpoint("llama", seed=9)), False)):
        engine = llm(loaded, drafters=("draft-model",), draft_model=folder, adaptive=False)
        done = engine.generate(requests())
        for found in done:
            assert content(found) == content(expected[found.request_id]), found.request_id
        rate = sum(f.stats.num_accepted_tokens for f in done) / sum(f.stats.num_steps for f in done)
        assert rate > 1.0 or not accepts, "the target as its own draft model is mostly right"


def test_rejection_emits_greedy_tokens_too(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    engine = llm(loaded, oracle_of(expected), drafters=("adversarial",), adaptive=False, acceptance="rejection")
    greedy = [request for request in requests() if request.sampling.greedy]
    for found in engine.generate(greedy):
        assert found.token_ids == expected[found.request_id].token_ids


def test_speculation_can_be_switched_off_or_narrowed_per_request(loaded: assemble.LoadedModel) -> None:
    engine = llm(loaded, drafters=("ngram", "adversarial"), adaptive=False)
    base = requests()[0]
    for name, wish in (
        ("off", SpeculationParams(enabled=False)),
        ("one", SpeculationParams(drafter="adversarial")),
        ("few", SpeculationParams(max_nodes=2)),
    ):
        stats = engine.generate([replace(base, request_id=name, speculation=wish)])[0].stats
        if name == "off":
            assert stats.num_draft_tokens == 0
        elif name == "one":
            assert set(stats.drafted_by_drafter) == {"adversarial"}
        else:
            assert 0 < stats.num_draft_tokens <= stats.num_steps


def test_statistics_add_up(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    engine = llm(loaded, oracle_of(expected), drafters=("adversarial",), adaptive=False)
    for found in engine.generate(requests()):
        stats = found.stats
        assert sum(stats.accepted_histogram) == stats.num_steps
        assert sum(i * n for i, n in enumerate(stats.accepted_histogram)) == stats.num_accepted_tokens
        assert sum(stats.accepted_by_depth) == stats.num_accepted_tokens
        assert sum(stats.drafted_by_drafter.values()) == stats.num_draft_tokens
        assert stats.num_steps + stats.num_accepted_tokens - len(found.token_ids) in (0, 1), "the last step may lack its bonus"


def test_stop_tokens_stop_strings_and_lengths(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    engine = llm(loaded, oracle_of(expected), drafters=("adversarial",), adaptive=False)
    base = requests()[0]
    whole = expected[base.request_id]
    token = whole.token_ids[6]
    first = whole.token_ids.index(token)

    def run(name: str, **fields: Any) -> Completion:
        return engine.generate([replace(base, request_id=name, sampling=replace(base.sampling, **fields))])[0]

    stopped = run("token", stop_token_ids=(token,))
    assert stopped.token_ids == whole.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, token)
    text = whole.text[4:7]
    stopped = run("string", stop=(text,))
    assert stopped.text == whole.text[: whole.text.index(text)]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, text)
    assert whole.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    short = run("length", max_tokens=5)
    assert short.token_ids == whole.token_ids[:5]
    assert short.finish_reason is FinishReason.LENGTH
    late = run("min", stop_token_ids=(token,), min_tokens=first + 2)
    assert len(late.token_ids) >= first + 2
    assert token not in late.token_ids[: first + 1]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt_ids": (1,) * 600}, "prompt", "600"),
        ({"sampling": SamplingParams(max_tokens=5000)}, "max_tokens", "5000"),
        ({"prompt_ids": (999_999,)}, "prompt", "999999"),
        ({"sampling": SamplingParams(logit_bias={999_999: 1.0})}, "logit_bias", "999999"),
        ({"sampling": SamplingParams(stop_token_ids=(999_999,))}, "stop_token_ids", "999999"),
        ({"speculation": SpeculationParams(drafter="eagle")}, "speculative.drafter", "eagle"),
    ],
)
def test_what_can_never_be_served_is_refused(
    loaded: assemble.LoadedModel, fields: dict[str, Any], param: str, words: str
) -> None:
    engine = llm(loaded)
    with pytest.raises(RequestError, match=words) as caught:
        engine.generate([replace(requests()[0], **fields)])
    assert caught.value.param == param
    assert not engine.engine.has_work


def test_abort_frees_pages_before_the_next_round(loaded: assemble.LoadedModel) -> None:
    engine = llm(loaded).engine
    outputs: list[RequestOutput] = []
    for request in requests()[:3]:
        engine.submit(request, outputs.append)
    for _ in range(3):
        engine.step()
    assert engine.status().pages_used > 0
    for request in requests()[:3]:
        engine.abort(request.request_id)
    engine.abort("never heard of")
    assert not engine.step()
    assert engine.status().pages_used == 0
    assert [o.finish_reason for o in outputs[-3:]] == [FinishReason.ABORT] * 3
    engine.check()


def test_a_failing_round_fails_its_requests_and_no_others(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = llm(loaded, drafters=("ngram",))
    first, second = requests()[:2]
    with monkeypatch.context() as broken:
        broken.setattr(engine.engine._runner, "forward", lambda rows: 1 / 0)
        with pytest.raises(RoundError, match="division"):
            engine.generate([first])
    assert content(engine.generate([second])[0]) == content(expected[second.request_id])
    engine.engine.check()


def test_logits_that_are_not_finite_fail_their_request_only(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = llm(loaded)
    poisoned, healthy = requests()[0], requests()[6]
    outputs: dict[str, list[RequestOutput]] = {poisoned.request_id: [], healthy.request_id: []}
    logits = loaded.model.logits
    rounds = itertools.count()

    def nan_once(hidden: torch.Tensor) -> torch.Tensor:
        found = logits(hidden)
        if next(rounds) == 3:
            found[0, 5] = torch.nan
        return found

    monkeypatch.setattr(loaded.model, "logits", nan_once)
    for request in (poisoned, healthy):
        engine.engine.submit(request, outputs[request.request_id].append)
    while engine.engine.step():
        pass
    last = outputs[poisoned.request_id][-1]
    assert last.finish_reason is FinishReason.ERROR
    assert "not finite" in (last.error or "")
    tokens = [token for output in outputs[healthy.request_id] for token in output.token_ids]
    assert tokens == expected[healthy.request_id].token_ids
    assert engine.engine.status().pages_used == 0


def test_a_request_id_is_used_once_at_a_time(loaded: assemble.LoadedModel) -> None:
    engine = llm(loaded)
    request = requests()[0]
    with pytest.raises(RequestError, match="in use"):
        engine.generate([request, request])
    assert len(engine.generate([request])[0].token_ids) > 0


def test_a_request_id_that_comes_again_keeps_nothing_of_the_last_one(
    loaded: assemble.LoadedModel, expected: dict[str, Completion]
) -> None:
    engine = llm(loaded, prefix_cache=False)
    for request in requests()[: len(SAMPLINGS)]:
        found = engine.generate([replace(request, request_id="the same")])[0]
        assert content(found) == content(expected[request.request_id]), request.request_id
