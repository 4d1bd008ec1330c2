"""What a request may ask for, and the seeds of its choices."""

from typing import Any

import pytest

from specdec.errors import RequestError
from specdec.request import Request, SamplingParams, SpeculationParams, SpeculationStats, resolve_seed


def test_seeds_of_choices() -> None:
    assert resolve_seed(5) == 5
    mixed = [resolve_seed(5, choice) for choice in range(8)]
    assert len(set(mixed)) == 8
    assert mixed == [resolve_seed(5, choice) for choice in range(8)]
    assert resolve_seed(None) != resolve_seed(None)
    assert all(SamplingParams(seed=seed).seed == seed for seed in [*mixed, resolve_seed(None, 3)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-40),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {-1: 1.0}),
        ("seed", -2),
        ("seed", 2**63),
        ("max_tokens", -1),
        ("min_tokens", 17),
        ("stop", ("",)),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
    ],
)
def test_what_is_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**{field: value})
    assert refused.value.param == field
    assert field in refused.value.message


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (5e-324, True), (1e-39, True), (9e-6, True), (1e-3, False)])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).greedy == greedy


def test_a_prompt_has_a_token_and_a_tree_a_root() -> None:
    with pytest.raises(RequestError, match="no tokens"):
        Request(request_id="a", prompt_ids=())
    with pytest.raises(RequestError) as refused:
        SpeculationParams(max_nodes=0)
    assert refused.value.param == "speculative.max_nodes"


def test_rates_of_a_request_without_steps_are_zero() -> None:
    stats = SpeculationStats()
    assert (stats.mean_acceptance_length, stats.draft_acceptance_rate) == (0.0, 0.0)
    stats = SpeculationStats(num_steps=4, num_draft_tokens=8, num_accepted_tokens=2)
    assert (stats.mean_acceptance_length, stats.draft_acceptance_rate) == (1.5, 0.25)
