"""One odd request beside ordinary ones: what it asks for that they do not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from specdec.errors import ConfigError
from specdec.request import MAX_TOP_LOGPROBS, SamplingParams, SpeculationParams

_MANY_BIASES = 65  # one more than the device's rounds hold for a sequence
_NEVER = "\x00never\x00"


@dataclass(frozen=True, slots=True)
class Odd:
    """sampling: fields of SamplingParams that differ from the ordinary ones'. speculation: None where it is theirs."""

    sampling: Mapping[str, Any]
    speculation: SpeculationParams | None = None


def _bias(_drafters: Sequence[str]) -> Odd:
    return Odd({"logit_bias": dict.fromkeys(range(_MANY_BIASES), 0.5)})


def _drafter(drafters: Sequence[str]) -> Odd | None:
    return Odd({}, SpeculationParams(drafter=drafters[0])) if drafters else None


# by name, from the drafters that run; None where these give it no meaning
ODD: Mapping[str, Callable[[Sequence[str]], Odd | None]] = {
    "biases": _bias,
    "drafter": _drafter,
    "logprobs": lambda _: Odd({"logprobs": MAX_TOP_LOGPROBS}),
    "penalties": lambda _: Odd({"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5}),
    "nucleus": lambda _: Odd({"temperature": 1.5, "top_p": 0.999}),
    "filters": lambda _: Odd({"temperature": 1.0, "top_k": 50, "min_p": 0.05}),
    "stop": lambda _: Odd({"stop": (_NEVER,)}),
    "plain": lambda _: Odd({}, SpeculationParams(enabled=False)),
}


def check(names: Sequence[str]) -> None:
    """Raise ConfigError where there is no odd request of a name."""
    for name in names:
        if name not in ODD:
            raise ConfigError(f"There is no odd request {name!r}; there are {', '.join(ODD)}.")


def changed(sampling: SamplingParams, odd: Odd) -> SamplingParams:
    """The ordinary parameters, made odd."""
    return replace(sampling, **odd.sampling)
