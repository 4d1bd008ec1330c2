"""What `bench lossless` compares, and how; no model."""

from dataclasses import replace

import pytest

from specdec.bench import lossless
from specdec.bench.cases import Case
from specdec.bench.lossless_settings import (
    HOST_DRAFTER,
    TEMPERATURES,
    make_requests,
    settings_for,
    under_pressure,
    with_wishes,
)
from specdec.config import DRAFTERS, EngineConfig
from specdec.llm import Completion
from specdec.request import FinishReason, Request, SamplingParams, SpeculationParams, TokenLogprob

CASES = [Case(id=f"c{i}", content_type="chat", prompt_ids=(1, 2), prediction_ids=(3,)) for i in range(3)]


def completion(tokens: list[int], logprob: float = -0.5) -> Completion:
    logprobs = [TokenLogprob(token, logprob, ((token, logprob),)) for token in tokens]
    return Completion(request_id="r", token_ids=tokens, logprobs=logprobs, finish_reason=FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("found", "differing"),
    [
        (completion([1, 2, 3]), (0, 0, 0)),
        (completion([1, 9, 3]), (1, 1, 0)),
        (completion([1, 2]), (1, 1, 0)),
        (completion([1, 2, 3], -0.5000000000000001), (0, 3, 0)),
        (replace(completion([1, 2, 3]), finish_reason=FinishReason.STOP), (0, 0, 1)),
    ],
)
def test_every_difference_counts(found: Completion, differing: tuple[int, int, int]) -> None:
    comparison = lossless.Comparison(setting="s")
    comparison.add(completion([1, 2, 3]), found)
    assert (comparison.differing_tokens, comparison.differing_logprobs, comparison.differing_ends) == differing
    assert comparison.same is (differing == (0, 0, 0))
    assert (comparison.first_difference is None) is comparison.same


def test_lossless_requests_cover_temperatures_seeds_and_parameters() -> None:
    requests = make_requests(CASES, 1000, 2, 8)
    assert len({request.request_id for request in requests}) == len(CASES) * len(TEMPERATURES) * 2
    used = [request.sampling for request in requests]
    assert {(s.temperature, s.seed) for s in used} == {(t, seed) for t in TEMPERATURES for seed in (0, 1)}
    assert all(s.logprobs is not None for s in used)
    for field in ("top_k", "min_p", "stop", "logit_bias", "presence_penalty", "ignore_eos"):
        assert any(getattr(s, field) for s in used), field


@pytest.mark.parametrize("lengths", [[40, 41, 300], [10, 10, 30], [100, 900, 90, 95]])
def test_requests_under_pressure_fit_alone_and_not_together(lengths: list[int]) -> None:
    requests = [
        Request(request_id=str(i), prompt_ids=(1,) * length, sampling=SamplingParams(max_tokens=20))
        for i, length in enumerate(lengths)
    ]
    chosen, pages = under_pressure(requests, 16)
    assert len(chosen) >= 2
    assert all(-(-(len(request.prompt_ids) + 20) // 16) <= pages for request in chosen)
    first, second = (-(-len(request.prompt_ids) // 16) for request in chosen[:2])
    assert first + second + 1 <= pages  # both are admitted
    assert sum(-(-(len(request.prompt_ids) + 20) // 16) for request in chosen[:2]) > pages  # and cannot both end


def test_lossless_settings_cover_the_ways_of_serving() -> None:
    config = EngineConfig(draft_model="smaller")
    small = replace(config, page_size=16)
    settings = settings_for(config, small, replace(small, cache_gb=0.01), (1, 8))
    passes = [pass_ for setting in settings for pass_ in setting.passes]
    assert len({pass_.name for pass_ in passes}) == len(passes)
    assert any(not setting.config.drafters for setting in settings)
    assert {name for setting in settings for name in setting.config.drafters} == {*DRAFTERS, "adversarial", HOST_DRAFTER}
    assert {setting.config.prefix_cache for setting in settings} == {True, False}
    assert 0.01 in {setting.config.cache_gb for setting in settings}
    assert {pass_.at_once for pass_ in passes} >= {0, 1, 8}
    ahead = {setting.config.depth for setting in settings if setting.fixed_shapes and any(p.odd for p in setting.passes)}
    assert ahead == {1, 2}


def test_a_third_of_the_requests_has_wishes_of_every_kind() -> None:
    plain = make_requests(CASES, 1000, 2, 8)
    asked = with_wishes(plain, ("ngram",))
    wishes = [request.speculation for request in asked if request.speculation != SpeculationParams()]
    assert len(wishes) == len(plain) / 3
    assert {(wish.enabled, wish.max_nodes, wish.drafter) for wish in wishes} == {
        (False, None, None), (True, 2, None), (True, None, "ngram")
    }  # fmt: skip
    assert [request.sampling for request in asked] == [request.sampling for request in plain]


def test_a_request_that_left_is_compared_as_far_as_it_got() -> None:
    comparison = lossless.Comparison(setting="s")
    for tokens, differs in (([1, 2], 0), ([], 0), ([1, 9], 1)):
        comparison.add(completion([1, 2, 3]), replace(completion(tokens), finish_reason=FinishReason.ABORT))
        assert (comparison.differing_tokens, comparison.differing_ends) == (differs, 0)
