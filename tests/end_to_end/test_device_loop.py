"""Rounds that the device runs ahead of the host give every request the tokens that rounds of the host give it."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from specdec import assemble, device_loop, loop_graphs
from specdec.cache.attention import KVPool, cache_dtype
from specdec.config import EngineConfig
from specdec.device_loop import DeviceLoop
from specdec.llm import LLM, Completion
from specdec.lookup_width import WidthPolicy
from specdec.loop_graphs import LoopGraphs, RoundKey
from specdec.loop_members import LoopPlan
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationParams

PAGE = 64
LONG = tuple((i * 7) % 250 + 3 for i in range(60))
PROMPTS = (LONG, (5,), tuple(range(10, 50)))
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
)
DRAFTERS = ("ngram", "suffix", "prediction")


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]),
    ],
)
def loaded(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path]) -> assemble.LoadedModel:
    folder = tiny_checkpoint("llama", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    dtype = "float32" if request.param == "cpu" else "bfloat16"
    return assemble.load(EngineConfig(model=str(folder), dtype=dtype, device=request.param))


@pytest.fixture(autouse=True)
def loop_on_the_cpu(request: pytest.FixtureRequest, loaded: assemble.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the layers stay as they are, and attention runs in Triton's interpreter."""
    if loaded.model.device.type == "cpu":
        request.getfixturevalue("triton_interpreter")
        pytest.importorskip("specdec.kernels.tree_attention.kernel")
        monkeypatch.setattr(assemble, "uses_triton", lambda _device: True)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[LoopPlan]:
    """The plans of the loop's rounds."""
    seen: list[LoopPlan] = []
    enqueue = DeviceLoop.enqueue

    def noted(loop: DeviceLoop, plan: LoopPlan) -> None:
        seen.append(plan)
        enqueue(loop, plan)

    monkeypatch.setattr(DeviceLoop, "enqueue", noted)
    return seen


def llm(loaded: assemble.LoadedModel, **fields: Any) -> LLM:
    device = loaded.model.device.type
    defaults: dict[str, Any] = {"page_size": PAGE, "cache_gb": 0.01, "drafters": (), "max_tree_nodes": 4, "device_loop": True}
    dtype = "float32" if device == "cpu" else "bfloat16"
    config = EngineConfig(model=loaded.name, dtype=dtype, device=device, **defaults | fields)
    return LLM(assemble.build(config, loaded=loaded))


def requests(max_tokens: int = 9) -> list[Request]:
    return [
        Request(
            request_id=f"{p}-{s}",
            prompt_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
        )
        for p, prompt in enumerate(PROMPTS)
        for s, sampling in enumerate(SAMPLINGS)
    ]


def content(completion: Completion) -> tuple[object, ...]:
    return completion.token_ids, completion.text, completion.finish_reason, completion.stop_reason


def hold_logprobs(found: Completion, wanted: Completion, device: str) -> None:
    """To the bit on a GPU. On the CPU the host's rounds do not run the kernels that the loop's do."""
    assert [told.token for told in found.logprobs] == [told.token for told in wanted.logprobs]
    for mine, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
        logs, expected = ([told.logprob, *(log for _, log in told.top)] for told in (mine, theirs))
        assert logs == (expected if device == "cuda" else pytest.approx(expected, abs=1e-4))


@pytest.fixture(scope="module")
def expected(loaded: assemble.LoadedModel) -> dict[str, Completion]:
    """Every request alone, each round with the host."""
    alone = llm(loaded, max_batch=1, device_loop=False, prefix_cache=False)
    return {request.request_id: alone.generate([request])[0] for request in requests()}


def predicted(expected: dict[str, Completion]) -> list[Request]:
    """The requests, each with its answer as the text it expects."""
    return [replace(request, prediction_ids=tuple(expected[request.request_id].token_ids)) for request in requests()]


def test_plans_may_change_with_every_round(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], rounds: list[LoopPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = itertools.cycle((LoopPlan(4, 2), LoopPlan(3, 1), LoopPlan(1, 2), LoopPlan(4, 1)))
    monkeypatch.setattr(WidthPolicy, "choose", lambda *_: next(plans))
    done = llm(loaded, drafters=DRAFTERS).generate(requests())
    for found in done:
        assert content(found) == content(expected[found.request_id]), found.request_id
    assert len(set(rounds)) == 4
    assert sum(found.stats.num_draft_tokens for found in done) > 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"drafters": DRAFTERS},
        {"drafters": DRAFTERS, "adaptive": False, "max_batch": 3, "prefix_cache": False},
    ],
    ids=["plain", "planned", "wide"],
)
def test_nothing_changes_a_token(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], rounds: list[LoopPlan], fields: dict[str, Any]
) -> None:
    engine = llm(loaded, **fields)
    done = engine.generate(predicted(expected))
    for found in done:
        assert content(found) == content(expected[found.request_id]), found.request_id
    assert rounds, "the loop ran"
    all_stats = [found.stats for found in done]
    if fields.get("adaptive", True):
        return
    assert {plan.width for plan in rounds} == {4}
    accepted, steps = (sum(counts) for counts in zip(*((s.num_accepted_tokens, s.num_steps) for s in all_stats), strict=True))
    assert accepted > steps, "most predictions come true"
    for stats in all_stats:
        assert sum(stats.accepted_histogram) == stats.num_steps
        assert sum(stats.accepted_by_depth) == stats.num_accepted_tokens
        assert sum(stats.drafted_by_drafter.values()) == stats.num_draft_tokens
    assert sum(stats.accepted_by_drafter.get("prediction", 0) for stats in all_stats) > 0
    engine.engine.check()


def test_earlier_responses_are_drafted_from(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    engine = llm(loaded, drafters=DRAFTERS, adaptive=False, max_batch=1)
    first, again = (engine.generate([request])[0] for request in (requests()[0], replace(requests()[0], request_id="again")))
    assert content(again) == content(first) == content(expected[first.request_id])
    assert again.stats.accepted_by_drafter.get("suffix", 0) > 0
    assert again.stats.num_steps < first.stats.num_steps


def run(
    engine: LLM, arrivals: Mapping[int, Sequence[Request]], aborts: Mapping[int, str] | None = None
) -> dict[str, list[int]]:
    """Tokens by request; requests arrive and leave at given rounds."""
    outputs: dict[str, list[RequestOutput]] = {}
    core, step = engine.engine, 0
    while core.has_work or step <= max(arrivals):
        for request in arrivals.get(step, ()):
            core.submit(request, outputs.setdefault(request.request_id, []).append)
        if aborts and step in aborts:
            core.abort(aborts[step])
        core.step()
        step += 1
    core.check()
    assert core.status().pages_used == 0
    return {name: [token for output in seen for token in output.token_ids] for name, seen in outputs.items()}


def test_who_comes_and_goes_changes_nobody(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], rounds: list[LoopPlan]
) -> None:
    asked = requests()

    def variant(name: str, of: Request, **fields: Any) -> Request:
        return replace(of, request_id=name, sampling=replace(of.sampling, **fields))

    told_more = variant("logprobs", asked[1], logprobs=1)
    penalised = variant("penalties", asked[4], presence_penalty=0.5, max_tokens=5)
    edited = variant("edits", asked[1], frequency_penalty=0.4, repetition_penalty=1.3, logit_bias={7: 3.0, 9: -100.0})
    stopping = variant("stop", asked[0], stop_token_ids=(expected["0-0"].token_ids[5],))
    off = replace(asked[3], request_id="off", speculation=SpeculationParams(enabled=False))
    arrivals = {0: asked[:3], 3: [*asked[3:5], stopping], 7: [told_more, off], 9: [penalised, edited], 14: [asked[6]]}
    for drafters in ((), DRAFTERS):
        found = run(llm(loaded, drafters=drafters), arrivals, aborts={5: "0-1"})
        alone = llm(loaded, max_batch=1, device_loop=False, prefix_cache=False)
        for request in [*asked[:5], asked[6], told_more, stopping, off, penalised, edited]:
            whole = list(alone.generate([request])[0].token_ids)
            if request.request_id == "0-1":
                assert found["0-1"] == whole[: len(found["0-1"])]
                assert len(found["0-1"]) < len(whole)
            else:
                assert found[request.request_id] == whole, request.request_id
    assert rounds


EDITS: tuple[dict[str, Any], ...] = (
    {"presence_penalty": 1.5, "frequency_penalty": 0.7, "logprobs": 3},
    {"repetition_penalty": 1.8},
    {"logit_bias": {5: 4.0, 6: -2.5, 250: 100.0}},
    {"min_tokens": 6, "logprobs": 0},
)


@pytest.mark.parametrize("drafters", [(), DRAFTERS], ids=["plain", "drafted"])
def test_edited_logits_need_no_host(loaded: assemble.LoadedModel, rounds: list[LoopPlan], drafters: tuple[str, ...]) -> None:
    """Penalties, biases and bans in one batch, at several temperatures; stops that are banned for a while; log p, which are
    those of the logits before they are edited."""
    alone = llm(loaded, max_batch=1, device_loop=False, prefix_cache=False)
    plain = {request.request_id: alone.generate([request])[0].token_ids for request in requests()}
    asked = []
    for index, request in enumerate(requests()):
        edits = EDITS[index % len(EDITS)] | {"stop_token_ids": (plain[request.request_id][2],)}
        asked.append(replace(request, sampling=replace(request.sampling, **edits)))
    wanted = {request.request_id: alone.generate([request])[0] for request in asked}
    told = [replace(request, prediction_ids=tuple(wanted[request.request_id].token_ids)) for request in asked]
    assert not rounds
    for fields in ({"max_batch": 3}, {"adaptive": False}):
        for found in llm(loaded, drafters=drafters, **fields).generate(told):
            assert content(found) == content(wanted[found.request_id]), found.request_id
            hold_logprobs(found, wanted[found.request_id], loaded.model.device.type)
    assert rounds, "the loop ran"
    assert {len(told.top) for found in wanted.values() for told in found.logprobs} == {0, 3}
    assert len(wanted["0-0"].token_ids) < 9, "a stop token stops"
    assert len(wanted["1-0"].token_ids) >= 6, "but not while it is banned"


@pytest.mark.parametrize("adaptive", [True, False])
def test_log_p_need_no_host(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], rounds: list[LoopPlan], adaptive: bool
) -> None:
    asked = [
        replace(request, sampling=replace(request.sampling, logprobs=wish))
        for request, wish in zip(predicted(expected), itertools.cycle((20, None, 1)), strict=False)
    ]
    alone = llm(loaded, max_batch=1, device_loop=False, prefix_cache=False)
    wanted = {request.request_id: alone.generate([request])[0] for request in asked}
    assert not rounds
    for found in llm(loaded, drafters=DRAFTERS, adaptive=adaptive).generate(asked):
        assert content(found) == content(wanted[found.request_id]), found.request_id
        hold_logprobs(found, wanted[found.request_id], loaded.model.device.type)
    assert rounds, "the loop ran"
    assert adaptive or {plan.width for plan in rounds} == {4}


def test_more_biases_than_there_is_room_for_go_to_the_host(loaded: assemble.LoadedModel, rounds: list[LoopPlan]) -> None:
    request = requests()[1]
    asked = replace(request, sampling=replace(request.sampling, logit_bias=dict.fromkeys(range(20, 90), 1.0)))
    both = replace(request, sampling=replace(request.sampling, stop_token_ids=(9,), min_tokens=5, logit_bias={9: 2.0}))
    alone = llm(loaded, max_batch=1, device_loop=False, prefix_cache=False)
    for wish in (asked, both):
        assert content(llm(loaded).generate([wish])[0]) == content(alone.generate([wish])[0])
    assert not rounds


class Rerun:
    """A graph for machines without any: it runs the round that it was made of again."""

    capturing: ClassVar["Rerun | None"] = None
    replayed: ClassVar[list[RoundKey]] = []

    def __init__(self) -> None:
        self.round: Callable[[], None] = lambda: pytest.fail("nothing was captured")
        self.key: RoundKey | None = None

    def replay(self) -> None:
        assert self.key is not None, "something was captured"
        Rerun.replayed.append(self.key)
        self.round()


def test_rounds_come_back_as_graphs(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    if loaded.model.device.type == "cuda":
        pytest.skip("a GPU records graphs of its own, and all tests above run them")

    @contextmanager
    def recording(graph: Rerun, _memory: object) -> Iterator[None]:
        Rerun.capturing = graph
        yield
        Rerun.capturing = None

    def graphs_of(run: Callable[[RoundKey], None], _device: torch.device) -> LoopGraphs:
        def launch(key: RoundKey) -> None:
            if Rerun.capturing is None:
                run(key)
            else:
                Rerun.capturing.round, Rerun.capturing.key = partial(run, key), key

        return LoopGraphs(launch, torch.device("cuda"))

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Rerun)
    monkeypatch.setattr(loop_graphs, "recording", recording)
    monkeypatch.setattr(device_loop, "LoopGraphs", graphs_of)
    Rerun.replayed.clear()
    engine = llm(loaded, drafters=DRAFTERS)
    for _ in range(3):
        for found in engine.generate(predicted(expected)):
            assert content(found) == content(expected[found.request_id]), found.request_id
    assert len(Rerun.replayed) > len(set(Rerun.replayed)), "rounds were replayed"


def test_rounds_recorded_beforehand_change_nothing(loaded: assemble.LoadedModel, expected: dict[str, Completion]) -> None:
    """As at start-up on a GPU; on the CPU each round runs once."""
    engine = llm(loaded, drafters=DRAFTERS, max_batch=1)
    loop = engine.engine._loop
    assert loop is not None
    widths = (1, 2, 4)
    assert len(list(loop.prepare(widths, lookup=True))) == loop.num_prepared(widths)
    for request in requests()[:4]:
        assert content(engine.generate([request])[0]) == content(expected[request.request_id])
    engine.engine.check()


def test_preemption_changes_no_token(loaded: assemble.LoadedModel, rounds: list[LoopPlan]) -> None:
    """Each fits in a page at first and needs another, which not all can have."""
    model = loaded.model
    asked = [replace(request, prompt_ids=LONG) for request in requests(max_tokens=12)[:3]]
    alone = llm(loaded, max_batch=1, prefix_cache=False, device_loop=False)
    expected = [alone.generate([request])[0] for request in asked]
    page_bytes = KVPool.page_bytes(model.cache_specs, PAGE, cache_dtype(model.dtype, model.device))
    tight = llm(loaded, cache_gb=page_bytes * 5.01 / 1e9)
    for found, wanted in zip(tight.generate(asked), expected, strict=True):
        assert content(found) == content(wanted), found.request_id
    assert tight.engine.status().num_preemptions > 0
    assert rounds
    tight.engine.check()


def test_a_nucleus_too_wide_for_the_device_goes_to_the_host(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], rounds: list[LoopPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_loop, "_CANDIDATES", 3)
    for found in llm(loaded).generate(requests()):
        assert content(found) == content(expected[found.request_id]), found.request_id
    assert rounds


def test_a_failing_round_fails_its_requests_and_no_others(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = llm(loaded)
    outputs: list[RequestOutput] = []
    with monkeypatch.context() as broken:
        broken.setattr(DeviceLoop, "enqueue", lambda *_: 1 / 0)
        engine.engine.submit(requests()[0], outputs.append)
        while engine.engine.step():
            pass
    assert outputs[-1].finish_reason is FinishReason.ERROR
    assert "division" in (outputs[-1].error or "")
    second = requests()[1]
    assert content(engine.generate([second])[0]) == content(expected[second.request_id])
    engine.engine.check()


def test_logits_that_are_not_finite_fail_their_request_only(
    loaded: assemble.LoadedModel, expected: dict[str, Completion], rounds: list[LoopPlan]
) -> None:
    engine = llm(loaded).engine
    bad, healthy = replace(requests()[1], request_id="bad"), requests()[3]
    outputs: dict[str, list[RequestOutput]] = {"bad": [], healthy.request_id: []}
    for request in (bad, healthy):
        engine.submit(request, outputs[request.request_id].append)
    while len(rounds) < 4:
        engine.step()
    with torch.inference_mode():
        engine._runner.pool.layer(0)[1][engine._sequences["bad"].pages[0]] = torch.nan
    while engine.step():
        pass
    assert outputs["bad"][-1].finish_reason is FinishReason.ERROR
    assert "not finite" in (outputs["bad"][-1].error or "")
    tokens = [token for output in outputs[healthy.request_id] for token in output.token_ids]
    assert tokens == expected[healthy.request_id].token_ids
    assert engine.status().pages_used == 0
