"""The engine on tiny models: the same bits however a request is served."""

from dataclasses import replace
from typing import Any

import pytest

from specdec.draft.cost import CostTable
from specdec.errors import RequestError
from specdec.llm import Completion
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams, SpeculationParams
from specdec.round.sample import draw
from tests.end_to_end.conftest import ALL_DRAFTERS, LONG, Pool, Stage, TinyCheckpoint, content, hold, rest, traffic

DEPTHS = (0, 1, 2)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"drafters": ("ngram",), "adaptive": False},
        {"drafters": ("suffix",), "adaptive": False},
        {"drafters": ("prediction",), "adaptive": False},
        {"drafters": ("adversarial",), "adaptive": False, "chunk_tokens": 7},
        {"drafters": ("adversarial",), "adaptive": False, "prefix_cache": False, "max_tree_nodes": 5, "max_batch": 1},
        {"drafters": ALL_DRAFTERS, "adaptive": False, "max_tree_nodes": 24},
        {"drafters": ("ngram", "suffix", "prediction")},
    ],
    ids=["plain", "ngram", "suffix", "prediction", "trees, chunks of 7", "trees alone, no prefix cache", "all", "planned"],
)
def test_nothing_changes_a_bit(
    stage: Stage, pool: Pool, fields: dict[str, Any], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time, prefixes are cached and answers are known to the suffix library."""
    monkeypatch.setattr(CostTable, "drafting", lambda *_: 0.0)  # beside so small a model drafters would rest
    llm = stage.llm(pool.oracle, depth=depth, **fields)
    asked = pool.requests[depth::3] if fields else pool.requests
    for _again in range(2):
        done = llm.generate(asked)
        for found in done:
            hold(found, pool.expected[found.request_id])
        rest(llm)
    accepted, drafted = (
        sum(values)
        for values in zip(*((found.stats.num_accepted_tokens, found.stats.num_draft_tokens) for found in done), strict=True)
    )
    if fields:
        assert 0 < accepted < drafted
    if fields.get("prefix_cache", True):
        assert any(found.num_cached_tokens for found in done)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_preemption_changes_no_bit(stage: Stage, prefix_cache: bool, depth: int) -> None:
    """Answers outgrow their pages by more than the one that admission leaves to each."""
    size = stage.page_size
    samplings: list[dict[str, Any]] = [{"temperature": 0.0}, {"seed": 2, "presence_penalty": 0.4}, {"seed": 3, "top_p": 0.9}]
    asked = [
        Request(request_id=f"{p}-{s}", prompt_ids=prompt, sampling=SamplingParams(max_tokens=3 * size, **sampling))
        for p, prompt in enumerate((LONG[: 2 * size], (5,)))
        for s, sampling in enumerate(samplings)
    ]
    plain = Pool.answers(stage.plain(), asked)
    for drafters in ((), ("adversarial",)):
        tight = stage.llm(pages=8, prefix_cache=prefix_cache, depth=depth, drafters=drafters, adaptive=False)
        for found in tight.generate(asked):
            hold(found, plain[found.request_id])
        assert tight.engine.status().num_preemptions > 0
        rest(tight)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_draft_model_changes_no_bit(stage: Stage, pool: Pool, tiny_checkpoint: TinyCheckpoint, depth: int) -> None:
    for folder, accepts in ((stage.loaded.name, True), (str(tiny_checkpoint("llama", 9, num_hidden_layers=2)), False)):
        fields: dict[str, Any] = {"drafters": ("draft-model",), "draft_model": folder, "adaptive": False, "chunk_tokens": 33}
        llm = stage.llm(pool.oracle, depth=depth, **fields)
        for _again in range(2):
            done = llm.generate(pool.requests[:: 2 if accepts else 5])
            for found in done:
                hold(found, pool.expected[found.request_id])
        rate = sum(f.stats.num_accepted_tokens for f in done) / sum(f.stats.num_steps for f in done)
        assert rate > 1.0 or not accepts, "the target as its own draft model is mostly right"
        rest(llm)


@pytest.mark.parametrize("depth", [0, 1])
def test_rejection_emits_greedy_tokens_too(stage: Stage, pool: Pool, depth: int) -> None:
    greedy = [request for request in pool.requests if request.sampling.greedy]
    for fields in ({"drafters": ALL_DRAFTERS}, {"drafters": ("draft-model",), "draft_model": stage.loaded.name}):
        llm = stage.llm(pool.oracle, adaptive=False, acceptance="rejection", depth=depth, **fields)
        for found in llm.generate(greedy):
            assert content(found) == content(pool.expected[found.request_id])
        rest(llm)


@pytest.mark.parametrize("depth", [0, 1])
def test_trees_of_uneven_size_fill_a_round(stage: Stage, depth: int) -> None:
    """One sequence may have a tree of 64 nodes, another a smaller one: the rows that are left over are shared out."""
    asked = [
        Request(request_id=f"{tokens}", prompt_ids=(5, tokens), sampling=SamplingParams(max_tokens=tokens, ignore_eos=True))
        for tokens in (70, 41)
    ]
    plain = Pool.answers(stage.plain(), asked)
    oracle = Pool.oracle_of(asked, plain)
    llm = stage.llm(oracle, drafters=("adversarial",), adaptive=False, max_tree_nodes=64, depth=depth)
    for found in llm.generate(asked):
        hold(found, plain[found.request_id])
    rest(llm)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_nucleus_of_many_tokens_changes_no_bit(stage: Stage, pool: Pool, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    """Where shapes are fixed, a few tokens are looked at first, and rows that need more are void for once."""
    monkeypatch.setattr(draw, "NARROW", 3)
    trees: dict[str, Any] = {"drafters": ("adversarial",), "adaptive": False}
    for fields in ({}, trees):
        llm = stage.llm(pool.oracle, depth=depth, **fields)
        for found in llm.generate(pool.requests):
            hold(found, pool.expected[found.request_id])
        rest(llm)


def test_speculation_can_be_switched_off_or_narrowed_per_request(stage: Stage, pool: Pool) -> None:
    """Beside one that drafts as it likes."""
    llm = stage.llm(pool.oracle, drafters=("ngram", "adversarial"), adaptive=False)
    base = pool.ordinary[0]
    wishes = {
        "off": SpeculationParams(enabled=False),
        "one": SpeculationParams(drafter="adversarial"),
        "other": SpeculationParams(drafter="ngram"),
        "few": SpeculationParams(max_nodes=2),
        "all": SpeculationParams(),
    }
    done = llm.generate([replace(base, request_id=name, speculation=wish) for name, wish in wishes.items()])
    stats = {found.request_id: found.stats for found in done}
    for found in done:
        hold(found, pool.expected[base.request_id])
    assert stats["off"].num_draft_tokens == 0
    assert set(stats["one"].drafted_by_drafter) == {"adversarial"}
    assert set(stats["other"].drafted_by_drafter) == {"ngram"}
    assert 0 < stats["few"].num_draft_tokens <= stats["few"].num_steps
    assert "adversarial" in stats["all"].drafted_by_drafter


def test_earlier_answers_are_drafted_from(stage: Stage, pool: Pool) -> None:
    llm = stage.llm(drafters=("ngram", "suffix"), adaptive=False, max_batch=1)
    first, again = (llm.generate([replace(pool.ordinary[8], request_id=name)])[0] for name in ("first", "again"))
    assert content(again) == content(first)
    assert again.stats.accepted_by_drafter["suffix"] > 0
    assert again.stats.num_steps < first.stats.num_steps


@pytest.mark.parametrize("depth", DEPTHS)
def test_stop_tokens_stop_strings_and_lengths(stage: Stage, pool: Pool, depth: int) -> None:
    """The drafts go on behind the end, and some are accepted there."""
    llm = stage.llm(pool.oracle, drafters=("adversarial",), adaptive=False, depth=depth)
    base = next(request for request in pool.ordinary if len(set(pool.expected[request.request_id].token_ids[:9])) == 9)
    whole = pool.expected[base.request_id]
    token = whole.token_ids[6]

    def run(name: str, **fields: Any) -> Completion:
        return llm.generate([replace(base, request_id=name, sampling=replace(base.sampling, **fields))])[0]

    stopped = run("token", stop_token_ids=(token,))
    assert stopped.token_ids == whole.token_ids[:7]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, token)
    text = whole.text[4:7]
    stopped = run("string", stop=(text,))
    assert stopped.text == whole.text[: whole.text.index(text)]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, text)
    assert whole.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    short = run("length", max_tokens=5)
    assert short.token_ids == whole.token_ids[:5]
    assert short.finish_reason is FinishReason.LENGTH
    late = run("min", stop_token_ids=(token,), min_tokens=9)
    assert len(late.token_ids) >= 9
    assert token not in late.token_ids[:8]
    rest(llm)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt_ids": (1,) * 600}, "prompt", "600"),
        ({"sampling": SamplingParams(max_tokens=5000)}, "max_tokens", "5000"),
        ({"prompt_ids": (999_999,)}, "prompt", "999999"),
        ({"prediction_ids": (999_999,)}, "prediction", "999999"),
        ({"sampling": SamplingParams(logit_bias={999_999: 1.0})}, "logit_bias", "999999"),
        ({"sampling": SamplingParams(stop_token_ids=(999_999,))}, "stop_token_ids", "999999"),
        ({"speculation": SpeculationParams(drafter="eagle")}, "speculative.drafter", "eagle"),
    ],
)
def test_what_can_never_be_served_is_refused(stage: Stage, pool: Pool, fields: dict[str, Any], param: str, words: str) -> None:
    llm = stage.llm()
    with pytest.raises(RequestError, match=words) as caught:
        llm.generate([replace(pool.ordinary[0], **fields)])
    assert caught.value.param == param
    rest(llm)


@pytest.mark.parametrize("depth", DEPTHS)
def test_abort_frees_pages_before_the_next_round(stage: Stage, pool: Pool, depth: int) -> None:
    engine = stage.llm(depth=depth).engine
    outputs: list[RequestOutput] = []
    for request in pool.ordinary[:3]:
        engine.submit(request, outputs.append)
    for _ in range(3 + depth):
        engine.step()
    assert engine.status().pages_used > 0
    for request in pool.ordinary[:3]:
        engine.abort(request.request_id)
    engine.abort("never heard of")
    engine.step()
    assert engine.status().pages_used == 0
    assert [o.finish_reason for o in outputs[-3:]] == [FinishReason.ABORT] * 3
    engine.check()
    assert not engine.has_work, "what was underway for them is read, and void"


def test_an_abort_that_comes_too_late_is_not_kept_for_the_next_of_that_name(stage: Stage, pool: Pool) -> None:
    llm, request = stage.llm(), pool.ordinary[1]
    llm.generate([request])
    llm.engine.abort(request.request_id)
    hold(llm.generate([request])[0], pool.expected[request.request_id])


def test_a_request_id_is_used_once_at_a_time(stage: Stage, pool: Pool) -> None:
    llm, request = stage.llm(depth=1), pool.ordinary[0]
    llm.engine.submit(request, lambda _: None)
    with pytest.raises(RequestError, match="in use"):
        llm.engine.submit(request, lambda _: None)
    for found in llm.generate([replace(request, request_id="the same"), replace(request, request_id="the same")]):
        assert content(found) == content(pool.expected[request.request_id]), "ids of our own keep them apart"
    while llm.engine.step():
        pass
    hold(llm.generate([request])[0], pool.expected[request.request_id])


@pytest.mark.parametrize("depth", [0, 1])
def test_a_request_id_that_comes_again_keeps_nothing_of_the_last_one(stage: Stage, pool: Pool, depth: int) -> None:
    llm = stage.llm(prefix_cache=False, depth=depth, max_batch=1)
    for request in pool.requests:
        found = llm.generate([replace(request, request_id="the same")])[0]
        assert content(found) == content(pool.expected[request.request_id]), request.request_id


@pytest.mark.parametrize("depth", [0, 1])
def test_a_sequence_that_cannot_enter_its_slot_fails_alone(
    stage: Stage, pool: Pool, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """Of two that are admitted together only the first has prompt tokens in the round."""
    llm = stage.llm(chunk_tokens=7, depth=depth)
    enter, seen = llm.engine._round.enter, list[int]()

    def fails(slot: int, *others: Any) -> None:
        seen.append(slot)
        if len(seen) == 1:
            raise RuntimeError("no room")
        enter(slot, *others)

    monkeypatch.setattr(llm.engine._round, "enter", fails)
    first, *others = pool.ordinary[:3]
    heard = traffic(llm, {0: [first, others[0]], 2: [others[1]]})
    assert heard[first.request_id].finish_reason is FinishReason.ERROR
    assert heard[first.request_id].error == "This request cannot be prepared: no room"
    for request in others:
        hold(heard[request.request_id], pool.expected[request.request_id])
