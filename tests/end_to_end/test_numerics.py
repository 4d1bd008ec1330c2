"""Whatever the API accepts gives what its limit gives: the smallest temperatures, penalties and shares, the largest biases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.request import FinishReason, Request, SamplingParams
from tests.end_to_end.conftest import LONG, Stage

LIMITS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"temperature": 9e-6}, {"temperature": 0.0}),
    ({"temperature": 1e-39}, {"temperature": 0.0}),
    ({"temperature": 5e-324, "top_p": 0.9, "min_p": 0.1}, {"temperature": 0.0}),
    ({"top_p": 5e-324}, {"temperature": 0.0}),
    ({"min_p": 1.0}, {"temperature": 0.0}),
    ({"top_k": 1}, {"temperature": 0.0}),
    ({"top_k": 2**40}, {}),
    ({"repetition_penalty": 0.01, "temperature": 0.7}, {}),
    ({"repetition_penalty": 0.01, "temperature": 1e-5}, {"repetition_penalty": 0.01, "temperature": 0.0}),
    ({"logit_bias": {7: 100.0}, "temperature": 1e-5}, {"logit_bias": {7: 90.0}, "temperature": 0.0}),
    ({"logit_bias": dict.fromkeys(range(250), -100.0)}, {"logit_bias": dict.fromkeys(range(250), -90.0)}),
    ({"logit_bias": dict.fromkeys(range(260), 100.0), "temperature": 100.0, "frequency_penalty": -2.0}, {}),
    (
        {"repetition_penalty": 10.0, "presence_penalty": 2.0, "frequency_penalty": 2.0, "min_tokens": 20, "temperature": 1e-5},
        {},
    ),
    ({"repetition_penalty": 0.01, "min_tokens": 20}, {}),
)


def asked(name: str, params: dict[str, Any]) -> Request:
    sampling: dict[str, Any] = {"max_tokens": 20, "seed": 5, "ignore_eos": "min_tokens" not in params}
    return Request(request_id=name, prompt_ids=LONG[:30], sampling=SamplingParams(**sampling | params))


@pytest.mark.parametrize("draft_model", [False, True], ids=["ngram", "draft model"])
def test_extremes_are_their_limits_and_harm_nobody(
    stage: Stage, draft_model: bool, tiny_checkpoint: Callable[..., Path]
) -> None:
    fields: dict[str, Any] = {"drafters": ("ngram",), "adaptive": False}
    if draft_model:
        draft = tiny_checkpoint("llama", seed=1, num_hidden_layers=1)
        fields |= {"drafters": ("draft-model",), "draft_model": str(draft), "max_tree_nodes": 4}
    llm = stage.llm(**fields)
    extremes = [asked(f"extreme {place}", params) for place, (params, _) in enumerate(LIMITS)]
    limits = [asked(f"limit {place}", params) for place, (_, params) in enumerate(LIMITS)]
    found = llm.generate([*extremes, asked("greedy", {"temperature": 0.0})])
    wanted = stage.plain().generate([*limits, asked("greedy", {"temperature": 0.0})])
    for extreme, limit, (params, of_limit) in zip(found[:-1], wanted[:-1], LIMITS, strict=True):
        assert extreme.finish_reason is not FinishReason.ERROR, params
        assert len(extreme.token_ids) == 20 or extreme.finish_reason is FinishReason.STOP
        if of_limit:
            assert extreme.token_ids == limit.token_ids, params
    assert found[-1].token_ids == wanted[-1].token_ids
