"""States and a head of a drafter's own: whatever an engine does, its answers are those of plain decoding, bit for bit."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.cache import recurrent
from specdec.cache.kinds import cache_dtype, slot_bytes
from specdec.cli.info import _cache_rows
from specdec.errors import ConfigError
from specdec.llm import LLM, Completion
from specdec.models.info import describe
from specdec.request import FinishReason, Request, SamplingParams
from specdec.round.outcome import Outcome
from tests.extension.conftest import LONG, Pool, Stage

Stages = Callable[[str], tuple[Stage, Pool]]


class Watch:
    """What the layers of the head keep of positions whose tokens are known, looked at while an engine runs."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._seen: dict[tuple[int, ...], list[Tensor]] = {}

    def look(self) -> None:
        """At the sequence that came last, as far as outcomes were read."""
        running = self._llm.engine._scheduler.running
        if running and running[-1].num_cached:
            sequence = running[-1]
            tokens = tuple(sequence.tokens[: sequence.num_cached + 1])  # the root, which is not kept yet, too
            self._seen[tokens] = kept_by_drafters(self._llm, sequence.pages, sequence.num_cached)

    def compare(self, stage: Stage) -> None:
        """With a fresh engine that reads the same tokens at once."""
        assert len(self._seen) > 2
        fresh = stage.llm(drafters=("tiny-head",), max_batch=1, prefix_cache=False, depth=0, chunk_tokens=1000)
        for tokens, found in self._seen.items():
            fresh.engine.submit(
                Request(request_id="1", prompt_ids=tokens, sampling=SamplingParams(max_tokens=9, ignore_eos=True)),
                lambda _: None,
            )
            fresh.engine.step()
            pages = fresh.engine._scheduler.running[0].pages
            assert all(map(torch.equal, found, kept_by_drafters(fresh, pages, len(tokens) - 1)))
            fresh.engine.abort("1")
            fresh.engine.step()


def kept_by_drafters(llm: LLM, pages: list[int], count: int) -> list[Tensor]:
    """[positions, heads, head_dim] of every layer of drafters, keys and values."""
    round_ = llm.engine._round
    first = len(round_.forward.model.cache_specs)
    specs = [spec for drafter in round_.drafting.drafters for spec in drafter.cache_specs]
    views = [round_.caches.view(first + layer, None) for layer in range(len(specs))]  # type: ignore[arg-type]
    stored = [part[pages].transpose(1, 2).flatten(0, 1)[:count].clone() for view in views for part in (view.keys, view.values)]
    assert all(part.any(dim=(1, 2)).all() for part in stored[2:]), "features are kept of every position"
    return stored


TREES: dict[str, Any] = {"drafters": ("adversarial",)}
HEAD_AND_TREES: dict[str, Any] = {"drafters": ("tiny-head", "adversarial"), "max_tree_nodes": 12}


@pytest.mark.parametrize(
    ("family", "fields", "depth"),
    [
        ("hybrid", {}, 1),
        *(("hybrid", TREES, depth) for depth in (0, 1, 2)),
        *(("hybrid", TREES | {"chunk_tokens": 7}, depth) for depth in (0, 2)),
        ("hybrid", {"drafters": ("ngram", "adversarial"), "max_tree_nodes": 24}, 1),
        *(("hybrid", HEAD_AND_TREES, depth) for depth in (0, 1, 2)),
        ("recurrent", TREES, 1),
        ("llama", {"drafters": ("tiny-head",), "chunk_tokens": 7}, 1),
        *(("llama", HEAD_AND_TREES, depth) for depth in (0, 1, 2)),
    ],
)
def test_nothing_changes_a_bit(stages: Stages, family: str, fields: dict[str, Any], depth: int) -> None:
    stage, pool = stages(family)
    llm = stage.llm(pool.oracle, depth=depth, **fields)
    for again in range(2):  # the second time prefixes are cached
        done = llm.generate(pool.requests)
        for found in done:
            pool.hold(found)
        llm.engine.check()
        assert again == 0 or sum(found.num_cached_tokens for found in done) > 0


def test_void_rounds_leave_states_as_they_were(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where shapes are fixed, a nucleus may turn out too wide for its round, and for those that ran ahead: they count for
    nothing."""
    stage, pool = stages("hybrid")
    monkeypatch.setattr("specdec.round.sample.draw.NARROW", 4)
    llm = stage.llm(pool.oracle, depth=2, **TREES)
    collected: list[Outcome] = []
    collect = llm.engine._round.collect

    def listen() -> Outcome:
        collected.append(collect())
        return collected[-1]

    monkeypatch.setattr(llm.engine._round, "collect", listen)
    for found in llm.generate(pool.requests):
        pool.hold(found)
    void = [outcome for outcome in collected if not outcome.sound.all()]
    assert bool(void) == (stage.as_gpu or stage.device == "cuda")
    assert any(outcome.drafted[~outcome.sound].any() for outcome in void) or not void


@pytest.mark.parametrize(("family", "prefix_cache"), [("hybrid", True), ("hybrid", False), ("llama", True)])
def test_preemption_changes_no_bit(stages: Stages, family: str, prefix_cache: bool) -> None:
    """Answers outgrow their pages by more than the one that admission leaves to each."""
    stage, _ = stages(family)
    pool = Pool(stage.plain(), max_tokens=3 * stage.page_size, prompts=(0, 4), samplings=2)
    pages = -(-(len(LONG) + 3 * stage.page_size) // stage.page_size) + 3
    llm = stage.llm(pool.oracle, pages, prefix_cache=prefix_cache, chunk_tokens=24, **HEAD_AND_TREES)
    for found in llm.generate(pool.requests):
        pool.hold(found)
    assert llm.engine.status().num_preemptions > 0
    llm.engine.check()


@pytest.mark.parametrize(("family", "seed"), [("hybrid", 0), ("hybrid", 1), ("hybrid", 2), ("llama", 1)])
def test_traffic_with_aborts_changes_no_bit(stages: Stages, family: str, seed: int) -> None:
    """Requests come and are aborted at random, twice each, in a cache and with marks that are too few for all; the books add up
    after every step, and what the head keeps of known positions is what it would compute anew."""
    stage, pool = stages(family)
    draw = random.Random(seed)
    llm = stage.llm(pool.oracle, 24, depth=seed, chunk_tokens=draw.choice((9, 20, 64)), max_batch=4, **HEAD_AND_TREES)
    watch = Watch(llm)
    asked = [replace(r, request_id=f"{r.request_id} {turn}") for turn in range(2) for r in pool.requests]
    draw.shuffle(asked)
    heard: dict[str, Completion] = {}
    doomed = set(draw.sample([request.request_id for request in asked], len(asked) // 3))
    for step in itertools.count():
        for request in [asked.pop() for _ in range(min(draw.randrange(3), len(asked)))]:
            heard[request.request_id] = Completion(request_id=request.request_id)
            llm.engine.submit(request, lambda output: heard[output.request_id].add(output, 0.0))
        for request_id in [name for name in heard if name in doomed and draw.random() < 0.15]:
            llm.engine.abort(request_id)
        busy = llm.engine.step()
        llm.engine.check()
        if step % 3 == 0:
            watch.look()
        if not (busy or asked):
            break
    assert llm.engine.status().pages_used == 0
    for name, found in heard.items():
        if found.finish_reason is FinishReason.ABORT:
            assert found.token_ids == pool.expected[name[:3]].token_ids[: len(found.token_ids)]
        else:
            pool.hold(replace(found, request_id=name[:3]))
    assert any(found.finish_reason is FinishReason.ABORT for found in heard.values())
    watch.compare(stage)


def test_a_prompt_that_is_aborted_while_it_is_read_gives_its_marks_back(stages: Stages) -> None:
    stage, pool = stages("hybrid")
    engine = stage.llm(depth=1, max_batch=2).engine
    for number in range(5):
        prompt = (number + 9, *range(3, 3 + 2 * stage.page_size))
        request = replace(pool.requests[0], request_id=str(number), prompt_ids=prompt)
        engine.submit(request, lambda _: None)
        engine.step()
        engine.check()
        engine.abort(request.request_id)
        while engine.step():
            engine.check()
    engine.check()


def test_what_a_third_prompt_has_in_common_with_others_is_read_once(stages: Stages) -> None:
    """Pages of what two prompts have in common are there, but a state only since they parted."""
    stage, pool = stages("hybrid")
    if stage.page_size > 16:
        pytest.skip("the prompts have less than a page in common")
    llm = stage.llm()
    cached = [llm.generate([request])[0].num_cached_tokens for request in (*pool.requests[::3][:3], pool.requests[0])]
    assert cached == [0, 0, 32, len(LONG) // 16 * 16]


def test_costs_are_measured_of_rounds_that_have_little_to_make_up_for(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever context is pretended, no more waits than what a round of one row leaves behind."""
    stage, _ = stages("hybrid")
    if stage.device != "cpu":
        pytest.skip("a recording reads no value")
    waiting: list[int] = []
    given = recurrent._most_waiting

    def listen(waiting_M: Tensor, longest_path: int) -> int:
        waiting.append(int(waiting_M.max()))
        return given(waiting_M, longest_path)

    monkeypatch.setattr(recurrent, "_most_waiting", listen)
    assert stage.llm(adaptive=True, **TREES).assembled.costs
    assert max(waiting) == 1


def test_a_draft_model_with_states_is_refused(stages: Stages) -> None:
    stage, _ = stages("hybrid")
    with pytest.raises(ConfigError, match="no draft can take back"):
        stage.llm(drafters=("draft-model",), draft_model=stage.loaded.name)


def test_states_have_their_share_of_the_memory(stages: Stages) -> None:
    stage, _ = stages("hybrid")
    for fields in ({}, {"max_model_len": None}):
        with pytest.raises(ConfigError, match=r"200 sequences keep 0\.\d+ GB of states, fewer with a lower --max-batch"):
            stage.llm(cache_gb=0.004, max_batch=200, **fields)
    model = stage.loaded.model
    state, row = 4 * 16 * 16 * 4, (2 * 2 * 16 + 4 * 16 + 2 * 4) * cache_dtype(model.dtype, model.device).itemsize
    assert slot_bytes(model.cache_specs, 0, cache_dtype(model.dtype, model.device)) == 2 * (state + 3 * row)
    assert slot_bytes(model.cache_specs, 8, cache_dtype(model.dtype, model.device)) == 2 * (state + 12 * row)
    told = dict(_cache_rows(describe(model.config, "hybrid"), 64))
    assert f"{2 * (state + 3 * 136 * 4):,} bytes" in told["state of a sequence"]
