"""The bodies of requests. What is not declared here is refused; null means left out.

Ranges that `SamplingParams` checks are not checked again.
"""

from reprlib import repr as short
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, from_json

from specdec.errors import RequestError

_MAX_CHOICES = 128
_MAX_STOPS = 16
_INVALID = "invalid_value"


def _only(*values: object) -> AfterValidator:
    """Of a field that asks for what this server cannot do, the values that ask for nothing are accepted."""

    def check(value: object) -> object:
        if value not in values:
            allowed = f"only {' or '.join(map(repr, values))} is" if values else "this field is not"
            raise ValueError(f"{allowed} supported by this server; leave it out.")
        return value

    return AfterValidator(check)


def _joined(value: object) -> object:
    """A text, or a list of text parts that become one."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not (isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"):
            raise ValueError('only text parts are supported: {"type": "text", "text": "..."}.')
        if not isinstance(part["text"], str):
            raise ValueError("the text of a part must be a string.")
    return "".join(part["text"] for part in value)


def _one_or_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _token_keys(value: object) -> object:
    if not isinstance(value, dict):
        return value
    for key in value:
        if not (isinstance(key, str) and key.isascii() and key.isdigit()):
            raise ValueError(f"its keys must be token ids, as strings of digits, not {short(key)}.")
    return {int(key): bias for key, bias in value.items()}


def _prompts(value: object) -> list[str | list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value) or all(_is_ids(item) for item in value):
            return value
        if _is_ids(value):
            return [value]
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of lists of token ids, not empty.")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


Refused = Annotated[object, _only()]
Text = Annotated[str, BeforeValidator(_joined)]


class Body(BaseModel):
    """Strict: no conversions, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Annotated[object, _only(False)] = None


class Prediction(Body):
    """Text that the answer is expected to be close to."""

    type: Literal["content"]
    content: Text


class Speculative(Body):
    """The request's own word on speculation."""

    enabled: bool = True
    max_nodes: int | None = None
    drafter: str | None = None


class GenerationBody(Body):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: float = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0  # 0 and -1 keep all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Annotated[dict[int, float], BeforeValidator(_token_keys)] = {}
    seed: Annotated[int | None, Field(ge=-(2**63), le=2**63 - 1)] = None
    stop: Annotated[list[str], Field(max_length=_MAX_STOPS), BeforeValidator(_one_or_list)] = []
    stop_token_ids: list[int] = []
    min_tokens: int = 0
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    prediction: Prediction | None = None
    speculative: Speculative = Speculative()
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: Annotated[object, _only(False)] = None
    service_tier: Annotated[object, _only("auto", "default")] = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true.", param="stream_options", code=_INVALID)
        return self


class Message(Body):
    """One message. Fields that only an answer with content but no calls has may be sent back as null or empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[object, _only([])] = None
    annotations: Annotated[object, _only([])] = None
    function_call: Refused = None
    refusal: Refused = None
    audio: Refused = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: Annotated[object, _only({"type": "text"})] = None
    modalities: Annotated[object, _only(["text"])] = None
    parallel_tool_calls: bool | None = None
    tool_choice: Annotated[object, _only("none")] = None
    function_call: Annotated[object, _only("none")] = None
    tools: Refused = None
    functions: Refused = None
    audio: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None
    web_search_options: Refused = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true.", param="top_logprobs", code=_INVALID)
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "max_tokens is the old name of max_completion_tokens; give one of them."
            raise RequestError(message, param="max_tokens", code=_INVALID)
        return self


class CompletionBody(GenerationBody):
    """POST /v1/completions"""

    prompt: Annotated[Any, AfterValidator(_prompts)]  # list[str | list[int]] once checked
    echo: bool = False
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    best_of: int | None = None
    suffix: Refused = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.best_of not in (None, self.n):
            message = f"best_of is only supported when it equals n ({self.n}); all choices are returned."
            raise RequestError(message, param="best_of", code=_INVALID)
        if self.echo and self.logprobs is not None:
            message = "echo with logprobs is not supported: the prompt's own logprobs are not computed. Give one of them."
            raise RequestError(message, param="echo", code=_INVALID)
        return self


_Body = TypeVar("_Body", bound=Body)


def parse(kind: type[_Body], raw: bytes) -> _Body:
    """The body of a request.

    Raises:
        RequestError: it is no JSON object or not as `kind` declares; `param` names the field.
    """
    try:
        data = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(data, dict):
        raise RequestError(f"The body must be a JSON object, not {short(data)}.", code="invalid_json")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _to_request_error(error.errors(include_url=False)[0]) from error


def _to_request_error(details: ErrorDetails) -> RequestError:
    """The first thing that is wrong, in words that name the field."""
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return cause
    param = _param(details["loc"])
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}.get(details["type"], _INVALID)
    message = _describe(param, details) if cause is None else f"{param}: {cause}"
    return RequestError(message, param=param, code=code)


def _describe(param: str, details: ErrorDetails) -> str:
    if details["type"] == "missing":
        return f"{param} is required."
    if details["type"] == "extra_forbidden":
        return f"{param} is not a field that this server supports; leave it out or check its spelling."
    said = details["msg"][0].lower() + details["msg"][1:]
    given = len(details["input"]) if details["type"] in ("too_short", "too_long") else short(details["input"])
    return f"{param}: {said.partition(' after')[0]}, not {given}."


def _param(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") is messages[0].content."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
