"""A round that fails costs time: its requests are computed again, one by one, and who fails there fails alone."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from specdec.draft.protocol import Drafts, DraftView, ObserveView, Starter
from specdec.errors import DeviceError
from specdec.llm import LLM, Completion
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams
from specdec.round.plan import RoundPlan
from tests.end_to_end.conftest import ALL_DRAFTERS, Pool, Stage, content, hold, rest, traffic

Patch = pytest.MonkeyPatch
SEED = 12345  # of a request that fails whatever round it is in


def failing(llm: LLM, monkeypatch: Patch, fails: Callable[[RoundPlan], bool], error: Exception) -> list[RoundPlan]:
    """Rounds of some plans fail on their way, after they have changed the caches. The plans of all rounds."""
    round_, plans = llm.engine._round, list[RoundPlan]()
    enqueue = round_.enqueue

    def spoilt(plan: RoundPlan) -> None:
        def raises(*_: Any) -> None:
            raise error

        plans.append(plan)
        with monkeypatch.context() as broken:
            if fails(plan):
                broken.setattr(round_.forward.model, "logits", raises)
                broken.setattr(round_.graphs, "launch", round_._launch)
            enqueue(plan)

    monkeypatch.setattr(round_, "enqueue", spoilt)
    return plans


def of_seed(llm: LLM, seed: int) -> Callable[[RoundPlan], bool]:
    """Whether the request with that seed is in a round."""
    sampling = llm.engine._round.slots.sampling
    return lambda plan: seed in sampling.keys.seeds_S[torch.from_numpy(plan.slots)].tolist()


def bad(seed: int) -> Request:
    return Request(request_id="bad", prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=9, seed=seed))


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("fields", [{}, {"pages": 16, "chunk_tokens": 20}], ids=["room", "few pages"])
def test_who_was_in_a_failed_round_is_served_all_the_same(
    stage: Stage, pool: Pool, monkeypatch: Patch, depth: int, fields: dict[str, Any]
) -> None:
    llm = stage.llm(pool.oracle, drafters=ALL_DRAFTERS, adaptive=False, depth=depth, **fields)
    count = iter(range(10_000))
    failing(llm, monkeypatch, lambda plan: len(plan) > 1 and next(count) % 5 == 3, RuntimeError("now and then"))
    found = traffic(llm, {0: pool.requests[:5], 6: pool.requests[5:14]})
    assert next(count) > 8
    for name, completion in found.items():
        hold(completion, pool.expected[name])


@pytest.mark.parametrize("depth", [0, 1])
def test_who_fails_alone_fails_alone(stage: Stage, pool: Pool, monkeypatch: Patch, depth: int) -> None:
    llm = stage.llm(pool.oracle, drafters=("ngram",), depth=depth)
    failing(llm, monkeypatch, of_seed(llm, SEED), ZeroDivisionError("of this one"))
    heard = traffic(llm, {0: pool.requests[:2], 3: [bad(SEED)], 5: pool.requests[2:4]})
    assert heard["bad"].finish_reason is FinishReason.ERROR
    assert heard["bad"].error == "The round failed: of this one"
    for request in pool.requests[:4]:
        hold(heard[request.request_id], pool.expected[request.request_id])


def test_completions_come_beside_those_that_failed(stage: Stage, pool: Pool, monkeypatch: Patch) -> None:
    llm, request = stage.llm(), pool.requests[0]
    failing(llm, monkeypatch, of_seed(llm, SEED), RuntimeError("never"))
    failed, good = llm.generate([bad(SEED), request])
    assert failed.error == "The round failed: never"
    hold(good, pool.expected[request.request_id])
    rest(llm)


def test_a_lost_outcome_harms_nobody(stage: Stage, pool: Pool, monkeypatch: Patch) -> None:
    """The first has its only tokens in a round whose outcome cannot be read, and no part in the one behind it."""
    llm = stage.llm(depth=1)
    collect, seen = llm.engine._round.collect, list[int]()

    def lost() -> Any:
        seen.append(1)
        if len(llm.engine._underway[0][0]) > 1 and len(seen) % 5 == 1:
            raise RuntimeError("the outcome is lost")
        return collect()

    monkeypatch.setattr(llm.engine._round, "collect", lost)
    found = traffic(llm, {0: pool.stopping[:6]})
    for name, completion in found.items():
        hold(completion, pool.expected[name])


@pytest.mark.parametrize("depth", [0, 1])
def test_memory_that_runs_out_makes_chunks_smaller(stage: Stage, pool: Pool, monkeypatch: Patch, depth: int) -> None:
    llm = stage.llm(chunk_tokens=128, depth=depth)
    monkeypatch.setattr(llm.engine._scheduler, "acquit", pytest.fail)  # nobody is suspected
    plans = failing(llm, monkeypatch, lambda plan: plan.num_chunk > 40, torch.OutOfMemoryError("CUDA out of memory"))
    for name, completion in traffic(llm, {0: pool.requests[:4]}).items():
        hold(completion, pool.expected[name])
    assert max(plan.num_chunk for plan in plans) > 40 >= max(plan.num_chunk for plan in plans[-10:])


@pytest.mark.parametrize("when", [1, 4, 9])
def test_who_does_not_listen_ends_alone(stage: Stage, pool: Pool, when: int) -> None:
    llm, heard = stage.llm(pool.oracle, drafters=("ngram",)), list[RequestOutput]()
    good, unheard = pool.requests[:2]
    found = Completion(request_id=good.request_id)

    def deaf(output: RequestOutput) -> None:
        heard.append(output)
        if len(heard) >= when:
            raise BrokenPipeError("nobody is there")

    llm.engine.submit(good, lambda output: found.add(output, 0.0))
    llm.engine.submit(unheard, deaf)
    while llm.engine.step():
        llm.engine.check()
    hold(found, pool.expected[good.request_id])
    assert len(heard) <= when + 1, "once more, that it failed"
    rest(llm)


class Faulty:
    """A drafter that drafts the last token again, and fails at a step in its third call."""

    def __init__(self, drafter: Any, step: str) -> None:
        self._drafter, self._step, self._calls = drafter, step, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def _call(self, step: str, *given: Any) -> Any:
        if step == self._step:
            self._calls += 1
            if self._calls >= 3:
                raise ValueError(f"{step} is broken")
        return getattr(self._drafter, step, lambda: None)(*given)

    def enter(self, slot: int, starter: Starter) -> None:
        self._call("enter", slot, starter)

    def leave(self, slot: int, output: Sequence[int]) -> None:
        self._call("leave", slot, output)

    def catch_up(self) -> None:
        self._call("catch_up")

    def draft(self, view: DraftView) -> Drafts:
        drafts: Drafts = self._call("draft", view)
        return drafts

    def observe(self, view: ObserveView) -> None:
        self._call("observe", view)


@pytest.mark.parametrize("drafters", [("adversarial",), ALL_DRAFTERS], ids=["alone", "beside others"])
@pytest.mark.parametrize("step", ["enter", "leave", "catch_up", "draft", "observe"])
def test_a_drafter_that_fails_costs_speed(
    stage: Stage, pool: Pool, drafters: tuple[str, ...], step: str, caplog: pytest.LogCaptureFixture
) -> None:
    llm = stage.llm(pool.oracle, drafters=drafters, adaptive=False)
    crew = llm.engine._round.drafting.crew
    crew._working = {number: Faulty(drafter, step) for number, drafter in crew._working.items()}
    crew.drafters = tuple(crew._working.values())
    for name, completion in traffic(llm, {0: pool.requests[:4], 5: pool.requests[4:8]}).items():
        hold(completion, pool.expected[name])
    assert len(crew._working) == (0 if step in ("catch_up", "draft", "observe") else len(crew.drafters))
    assert not any("round failed" in record.message for record in caplog.records)


def test_a_text_that_cannot_be_made_fails_its_request_alone(stage: Stage, pool: Pool) -> None:
    llm, heard = stage.llm(), dict[str, Completion]()
    for request in pool.requests[:3]:
        heard[request.request_id] = Completion(request_id=request.request_id)
        llm.engine.submit(request, lambda output: heard[output.request_id].add(output, 0.0))
    first, *others = pool.requests[:3]
    llm.engine.step()
    llm.engine._sequences[first.request_id].stream = None  # type: ignore[assignment]
    while llm.engine.step():
        llm.engine.check()
    assert "NoneType" in (heard[first.request_id].error or "")
    for request in others:
        assert content(heard[request.request_id]) == content(pool.expected[request.request_id])
    rest(llm)


def test_a_device_that_has_failed_ends_the_engine(stage: Stage, pool: Pool, monkeypatch: Patch) -> None:
    llm = stage.llm()

    def dead(_: torch.device) -> None:
        raise DeviceError("The GPU has failed")

    failing(llm, monkeypatch, lambda plan: True, RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr("specdec.round.round.check_device", dead)
    llm.engine.submit(pool.requests[0], lambda _: None)
    for _ in range(2):
        with pytest.raises(DeviceError, match="has failed"):
            llm.engine.step()
