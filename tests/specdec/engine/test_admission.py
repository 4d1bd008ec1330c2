"""Requests that could never be served are refused, by the name of the field."""

from typing import Any

import pytest

from specdec.engine.admission import Admission
from specdec.errors import RequestError
from specdec.request import Request, SamplingParams, SpeculationParams

ADMISSION = Admission(vocab_size=100, max_model_len=32, drafters=("ngram", "suffix"))


def request(**changed: Any) -> Request:
    return Request(request_id="a", **{"prompt_ids": tuple(range(10))} | changed)


@pytest.mark.parametrize(
    "served",
    [
        request(),
        request(prompt_ids=(0, 99), sampling=SamplingParams(max_tokens=30)),
        request(sampling=SamplingParams(logit_bias={99: 1.0}, stop_token_ids=(0, 99))),
        request(speculation=SpeculationParams(drafter="suffix"), prediction_ids=(99,)),
    ],
)
def test_what_fits_is_served(served: Request) -> None:
    ADMISSION.check(served)


INVALID, LONG = "invalid_value", "context_length_exceeded"
REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"prompt_ids": (0, 100)}, "prompt", INVALID, "token 100"),
    ({"prompt_ids": (-1,)}, "prompt", INVALID, "token -1"),
    ({"prompt_ids": (1,) * 32}, "prompt", LONG, "Shorten the prompt."),
    ({"prompt_ids": (1,) * 40}, "prompt", LONG, "has 40"),
    ({"sampling": SamplingParams(max_tokens=23)}, "max_tokens", LONG, "33 in all"),
    ({"sampling": SamplingParams(logit_bias={100: 1.0})}, "logit_bias", INVALID, "token 100"),
    ({"sampling": SamplingParams(stop_token_ids=(5, 400))}, "stop_token_ids", INVALID, "token 400"),
    ({"prediction_ids": (1, 2, 100)}, "prediction", INVALID, "between 0 and 99"),
    ({"speculation": SpeculationParams(drafter="eagle")}, "speculative.drafter", INVALID, "ngram, suffix"),
]


@pytest.mark.parametrize(("changed", "param", "code", "said"), REFUSED)
def test_what_can_never_be_served_is_refused_by_name(changed: dict[str, Any], param: str, code: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        ADMISSION.check(request(**changed))
    assert (refused.value.param, refused.value.code) == (param, code)
    assert said in refused.value.message


def test_a_server_without_drafters_says_so() -> None:
    with pytest.raises(RequestError, match="runs: none"):
        Admission(100, 32, ()).check(request(speculation=SpeculationParams(drafter="ngram")))
