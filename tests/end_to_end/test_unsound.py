"""Numbers that are not finite end the request that meets them, and no other; met in a draft alone, they end nobody."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec import assemble
from specdec.config import EngineConfig
from specdec.llm import Completion
from specdec.request import FinishReason, Request, SamplingParams
from tests.end_to_end.conftest import LONG, Pool, Stage, hold, traffic

BAD = 260  # a token that nothing finite can be computed from
NEVER = {BAD: -100.0}


@pytest.fixture
def poisoned(stage: Stage) -> Stage:
    """The stage's model, but for one token's embedding."""
    dtype = "float32" if stage.device == "cpu" else "bfloat16"
    loaded = assemble.load(EngineConfig(model=stage.loaded.name, dtype=dtype, device=stage.device))
    with torch.inference_mode():
        loaded.model._embedding_VE[BAD] = torch.nan  # type: ignore[attr-defined]
    return Stage(loaded, stage.fixed_shapes)


def asked(tokens: int = 40) -> list[Request]:
    """Requests that never say the bad token."""
    samplings: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, {"seed": 1}, {"seed": 2, "top_p": 0.9, "logprobs": 1})
    return [
        Request(
            request_id=f"{p}-{s}",
            prompt_ids=prompt,
            sampling=SamplingParams(max_tokens=tokens, ignore_eos=True, logit_bias=NEVER, **sampling),
        )
        for p, prompt in enumerate((LONG, (5,), LONG[:40]))
        for s, sampling in enumerate(samplings)
    ]


def bad(name: str, place: int, length: int = 70) -> Request:
    """A prompt as others have it, but for the bad token at some place."""
    prompt = (*LONG[:place], BAD, *LONG[place + 1 : length])
    return Request(request_id=name, prompt_ids=prompt, sampling=SamplingParams(max_tokens=9, logit_bias=NEVER))


def failed(completion: Completion) -> None:
    assert completion.finish_reason is FinishReason.ERROR
    assert completion.error == "The model gave logits that are not finite (NaN or infinite) for this request."
    assert not completion.token_ids


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(
    "fields",
    [{}, {"drafters": ("adversarial",), "adaptive": False, "chunk_tokens": 20}, {"pages": 12}],
    ids=["plain", "trees", "few pages"],
)
def test_a_prompt_that_cannot_be_computed_fails_alone(poisoned: Stage, fields: dict[str, Any], depth: int) -> None:
    """It shares pages with others, and gives its own back to be used by them."""
    requests = asked()
    plain = Pool.answers(poisoned.plain(), requests)
    llm = poisoned.llm(Pool.oracle_of(requests, plain), depth=depth, **fields)
    late = [replace(request, request_id=f"{request.request_id} late") for request in requests]
    arrivals = {0: requests[:4], 9: [bad("shares four pages", 66), bad("shares none", 0)], 12: requests[4:], 25: late}
    found = traffic(llm, arrivals | {14: [bad("shares two", 40)], 30: [bad("again", 66)]})
    for name, completion in found.items():
        if name.removesuffix(" late") in plain:
            hold(completion, plain[name.removesuffix(" late")])
        else:
            failed(completion)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_draft_that_cannot_be_computed_fails_nobody(poisoned: Stage, depth: int) -> None:
    """The text that a request expects has the bad token in it; its neighbours draft as well."""
    requests = asked()
    plain = Pool.answers(poisoned.plain(), requests)
    expecting = []
    for request in requests:
        answer = plain[request.request_id].token_ids
        expecting.append(replace(request, prediction_ids=(*answer[:3], BAD, *answer[3:20], BAD, BAD, *answer[20:])))
    for drafters in (("prediction",), ("prediction", "adversarial")):
        llm = poisoned.llm(Pool.oracle_of(requests, plain), depth=depth, drafters=drafters, adaptive=False)
        for found in llm.generate(expecting):
            hold(found, plain[found.request_id])
            assert found.stats.num_accepted_tokens > 0


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_pages_of_who_left_in_time_spoil_nobody(poisoned: Stage, depth: int) -> None:
    """The prompts are aborted before it is known that they cannot be computed; their pages are all that there are."""
    requests = asked()
    plain = Pool.answers(poisoned.plain(), requests)
    leaving = [bad(f"leaves {place}", place) for place in (0, 3, 17)]
    llm = poisoned.llm(
        Pool.oracle_of(requests, plain), pages=16, depth=depth, chunk_tokens=20, drafters=("adversarial",), adaptive=False
    )
    found = traffic(llm, {0: leaving, 4: requests}, aborts={3: [request.request_id for request in leaving]})
    for request in leaving:
        assert found[request.request_id].finish_reason is FinishReason.ABORT
    for request in requests:
        hold(found[request.request_id], plain[request.request_id])


@pytest.mark.parametrize("depth", [0, 1])
def test_a_prompt_is_judged_before_its_pages_are_found(poisoned: Stage, depth: int) -> None:
    """It is read in chunks of 20 tokens, and nobody else hears of what lies behind its bad token, however long it goes on."""
    llm = poisoned.llm(depth=depth, chunk_tokens=20)
    size = poisoned.page_size
    for place in (3, 25):
        llm.engine.submit(bad(f"at {place}", place), lambda _: None)
        known = len(llm.engine._scheduler._prefix or ())
        for _ in range(2 + depth):
            llm.engine.step()
        running = llm.engine._scheduler.running
        assert [sequence.spoilt for sequence in running] == [True]
        assert len(llm.engine._scheduler._prefix or ()) - known == place // 20 * 20 // size
        llm.engine.abort(f"at {place}")
        while llm.engine.step():
            pass


@pytest.mark.parametrize("acceptance", ["shared-noise", "rejection"])
def test_a_draft_model_that_cannot_compute_a_prompt_costs_speed(
    stage: Stage, pool: Pool, acceptance: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    """The target can. Those beside it go on drafting."""
    draft = str(tiny_checkpoint("llama", seed=1, num_hidden_layers=2))
    fields: dict[str, Any] = {"drafters": ("draft-model",), "draft_model": draft, "adaptive": False, "pages": 60}
    llm = stage.llm(acceptance=acceptance, **fields)
    (drafter,) = llm.engine._round.drafting.drafters
    with torch.inference_mode():
        drafter._model._embedding_VE[BAD] = torch.nan  # type: ignore[attr-defined]
    samplings: tuple[dict[str, Any], ...] = (
        {"temperature": 0.0},
        {"seed": 1},
        {"seed": 2, "top_p": 0.9},
        {"seed": 3, "top_k": 1},
    )
    odd = [
        replace(bad(f"odd {place}", 3 + place), sampling=SamplingParams(max_tokens=12, ignore_eos=True, **sampling))
        for place, sampling in enumerate(samplings)
    ]
    plain = Pool.answers(stage.plain(), odd)
    found = traffic(llm, {0: pool.ordinary[:4], 3: odd})
    for name, completion in found.items():
        if acceptance == "shared-noise":
            hold(completion, plain.get(name) or pool.expected[name])
        assert completion.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    assert sum(found[request.request_id].stats.num_draft_tokens for request in pool.ordinary[:4]) > 0
