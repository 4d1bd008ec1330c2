"""What a caller asks for and what comes back: plain data, no torch."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from specdec.errors import RequestError

MAX_TOP_LOGPROBS = 20
# Below it a request is greedy. Logits of models lie within a few hundred and ties within 1e-5 or so of them, which noise over a
# lower temperature would not turn; and float32 holds no logit over 1e-38
LEAST_TEMPERATURE = 1e-5
_SEED_BITS = 63
_LEAST_REPETITION_PENALTY = 0.01  # logits are divided by it, and far smaller ones leave float32's range


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens or the model's context is used up
    ABORT = "abort"  # the caller left
    ERROR = "error"  # its round failed


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How tokens are drawn. The defaults draw from the model's own distribution.

    Raises:
        RequestError: a value is out of its range; `param` names it.
    """

    temperature: float = 1.0  # 0 is greedy, and so is what lies below LEAST_TEMPERATURE
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output, as in Hugging Face transformers
    presence_penalty: float = 0.0  # over output, as OpenAI defines it
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0  # unsigned 63 bits; None and -1 draw one, now
    stop: Sequence[str] = ()  # one string is one stop string; kept as a tuple
    stop_token_ids: Sequence[int] = ()
    suppress_tokens: Sequence[int] = ()  # never emitted
    min_tokens: int = 0  # stop tokens are forbidden, stop strings are not looked for, until then
    max_tokens: int = 16  # 0: the prompt is read, and nothing is drawn
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False  # the text ends with what stopped it
    logprobs: int | None = None  # None: none; 0: the token's own; n: also the n most likely
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, given their predecessors
    n: int = 1  # answers to one prompt; `specdec.llm` makes a request for each of them, and the engine answers one

    def __post_init__(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stops)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        if self.seed in (None, -1):
            object.__setattr__(self, "seed", resolve_seed(None))
        _require(self.n >= 1, "n", self.n, "1 or more")
        _require(0.0 <= self.temperature <= 100.0, "temperature", self.temperature, "between 0 and 100")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _require(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1")
        least = _LEAST_REPETITION_PENALTY
        _require(
            least <= self.repetition_penalty <= 10.0, "repetition_penalty", self.repetition_penalty, f"between {least} and 10"
        )
        _require(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", self.presence_penalty, "between -2 and 2")
        _require(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", self.frequency_penalty, "between -2 and 2")
        for token, bias in self.logit_bias.items():
            _require(token >= 0, "logit_bias", token, "token ids of 0 or more")
            _require(-100.0 <= bias <= 100.0, "logit_bias", bias, "biases between -100 and 100")
        for token in self.suppress_tokens:
            _require(token >= 0, "suppress_tokens", token, "token ids of 0 or more")
        _require(0 <= self.seed < 1 << _SEED_BITS, "seed", self.seed, "between 0 and 2**63-1")
        _require(self.max_tokens >= 0, "max_tokens", self.max_tokens, "0 or more")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "between 0 and max_tokens")
        _require(all(self.stop), "stop", self.stop, "non-empty strings")
        for name, wanted in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            _require(wanted is None or 0 <= wanted <= MAX_TOP_LOGPROBS, name, wanted, f"between 0 and {MAX_TOP_LOGPROBS}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on which tokens came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """What a model's publisher recommends for what a request leaves out. None: nothing, and `SamplingParams` has the default.

    The names and meanings are those of `SamplingParams`, and of Hugging Face's generation_config.json.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    suppress_tokens: tuple[int, ...] | None = None

    def given(self) -> dict[str, Any]:
        """What is recommended, as arguments of `SamplingParams`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculationParams:
    """The request's own word on speculation. It changes the speed, never the output."""

    enabled: bool = True
    max_nodes: int | None = None  # of a tree, the root counted; None leaves it to the planner
    drafter: str | None = None  # only this one of the server's drafters

    def __post_init__(self) -> None:
        _require(self.max_nodes is None or self.max_nodes >= 1, "speculative.max_nodes", self.max_nodes, "1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One sequence to generate. A request for n choices is n of these."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    speculation: SpeculationParams = field(default_factory=SpeculationParams)
    prediction_ids: tuple[int, ...] = ()  # text the caller expects, tokenized
    cache_salt: str = ""  # what is kept of this request's text serves requests of the same salt alone

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("The prompt has no tokens; give it at least one.", param="prompt", code="invalid_value")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """log p of an emitted token under the target's raw distribution, and of the most likely ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), most likely first
    rank: int | None = None  # tokens that are likelier, and one; of a prompt's tokens


@dataclass(kw_only=True, slots=True)
class SpeculationStats:
    """What speculation did for one request, in the terms that load generators read.

    A step is one verification of this request's tree, plain steps (one node) included.
    """

    num_steps: int = 0
    num_draft_tokens: int = 0  # nodes verified, roots not counted
    num_accepted_tokens: int = 0
    accepted_histogram: list[int] = field(default_factory=lambda: [0])  # [accepted drafts] -> steps
    drafted_by_depth: list[int] = field(default_factory=list)  # [depth - 1] -> steps that drafted this deep
    accepted_by_depth: list[int] = field(default_factory=list)  # [depth - 1] -> steps accepted this deep
    drafted_by_drafter: dict[str, int] = field(default_factory=dict)
    accepted_by_drafter: dict[str, int] = field(default_factory=dict)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted per step, the bonus token counted."""
        return 1.0 + self.num_accepted_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted over drafted tokens."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


@dataclass(kw_only=True, slots=True)  # one for every token: a frozen one would take three times as long to make
class RequestOutput:
    """What one round gave one request: a delta, which nobody changes. `stats` is filled in the last one."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""  # whole characters only; a part of a stop string is held back
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token, when asked for
    prompt_logprobs: tuple[TokenLogprob, ...] | None = (
        None  # of the prompt's tokens but the first; in one delta, when asked for
    )
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token that ended it
    error: str | None = None  # with FinishReason.ERROR
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    stats: SpeculationStats | None = None


def resolve_seed(seed: int | None, choice: int = 0) -> int:
    """The seed of one of a request's n choices, 63 bits; fresh where the user gave none. Choice 0 keeps the user's."""
    if seed is None:
        return secrets.randbits(_SEED_BITS)
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _SEED_BITS)


def _require(ok: bool, param: str, value: object, allowed: str) -> None:
    if not ok:
        raise RequestError(f"{param} must be {allowed}, not {value!r}.", param=param, code="invalid_value")
