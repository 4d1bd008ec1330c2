"""The bodies of requests. Null means left out, as does what clients write for it; `tolerance` decides on unknown fields.

Ranges that `SamplingParams` checks are not checked again.
"""

from reprlib import repr as short
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, from_json

from specdec.errors import RequestError
from specdec.server.fields import Biases, Limit, ModelName, NumLogprobs, Prompts, Seed, Stops, Text, Variables, Whole, tell
from specdec.server.tolerance import asks_nothing, refusal

_MAX_CHOICES = 128
_INVALID = "invalid_value"


class Body(BaseModel):
    """Strict: no conversions but of whole numbers.

    place: how the object is called where its fields are told. tolerant: whether unknown fields that ask for nothing are left
    out. in_message: whether it stands in a conversation's history.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    place: ClassVar[str] = ""
    tolerant: ClassVar[bool] = True
    in_message: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: object, info: ValidationInfo) -> object:
        """Nulls, and what `tolerance` accepts."""
        if not isinstance(data, dict):
            return data
        known = cls.model_fields
        kept: dict[str, object] = {}
        for name, value in data.items():
            if name in known:
                kept |= {name: value} if value is not None else {}
            elif not (cls.tolerant and asks_nothing(name, value, cls.in_message)):
                kept[name] = value
            elif value is not None:
                tell(info, cls.place, (name,))
        return kept


class StreamOptions(Body):
    place = "stream_options"
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Prediction(Body):
    """Text that the answer is expected to be close to."""

    place = "prediction"
    type: Literal["content"]
    content: Text


class Speculative(Body):
    """The request's own word on speculation."""

    tolerant = False
    enabled: bool = True
    max_nodes: Whole | None = None
    drafter: str | None = None


class GenerationBody(Body):
    """What both endpoints take. What is None, and a parameter of sampling, the model's own default decides."""

    model: ModelName = None
    max_tokens: Limit = None
    temperature: float | None = None
    top_p: float | None = None  # 0: the most likely token
    top_k: Annotated[Whole, Field(ge=-1)] | None = None  # 0 and -1 keep all
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Biases = {}
    seed: Seed = None
    stop: Stops = []
    stop_token_ids: list[Whole] = []
    include_stop_str_in_output: bool = False
    min_tokens: Whole = 0
    ignore_eos: bool = False
    n: Annotated[Whole, Field(ge=1, le=_MAX_CHOICES)] = 1
    prompt_logprobs: NumLogprobs = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False
    prediction: Prediction | None = None
    speculative: Speculative = Speculative()
    cache_salt: Annotated[str, Field(max_length=1024)] = ""
    _ignored: list[str] = PrivateAttr(default_factory=list)

    @property
    def ignored(self) -> list[str]:
        """Fields that were accepted and have no effect; whoever finds more adds them."""
        return self._ignored

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return self.stream_options.include_usage

    @model_validator(mode="after")
    def _check_stream(self, info: ValidationInfo) -> Self:
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs needs stream to be false.", param="prompt_logprobs", code=_INVALID)
        if not self.stream and self.stream_options.model_fields_set:
            tell(info, "", ("stream_options",))
        return self


class FunctionCall(Body):
    """What an earlier answer called."""

    place, in_message = "messages.tool_calls", True
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Body):
    """A call in an earlier answer."""

    place, in_message = "messages.tool_calls", True
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """One message. Only answers may be without content, and what tools gave back."""

    place, in_message = "messages", True
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] = []
    reasoning_content: Text | None = None
    reasoning: Text | None = None

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.content is None and self.role not in ("assistant", "tool"):
            raise _MissingError("content")
        return self


class ChatFields(Body):
    """How a conversation becomes a prompt."""

    messages: Annotated[list[Message], Field(min_length=1)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: Variables = {}
    add_special_tokens: bool = False
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other; give one of them."
            raise RequestError(message, param="continue_final_message", code=_INVALID)
        return self


class ChatBody(ChatFields, GenerationBody):
    """POST /v1/chat/completions"""

    max_completion_tokens: Limit = None
    logprobs: bool = False
    top_logprobs: NumLogprobs = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true.", param="top_logprobs", code=_INVALID)
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "max_tokens is the old name of max_completion_tokens; give one of them."
            raise RequestError(message, param="max_tokens", code=_INVALID)
        return self


class CompletionBody(GenerationBody):
    """POST /v1/completions"""

    prompt: Prompts
    echo: bool = False
    logprobs: Annotated[NumLogprobs, BeforeValidator(lambda value: None if value is False else value)] = None
    best_of: Whole | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.best_of not in (None, self.n):
            message = f"best_of is only supported when it equals n ({self.n}); all choices are returned."
            raise RequestError(message, param="best_of", code=_INVALID)
        return self


class TokenizeBody(Body):
    """POST /tokenize of a text"""

    model: ModelName = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatBody(ChatFields):
    """POST /tokenize of a conversation"""

    model: ModelName = None
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: ModelName = None
    tokens: list[Whole]


_Body = TypeVar("_Body", bound=Body)


class _MissingError(ValueError):
    """A field that is required where it stands."""


def parse(kind: type[_Body], raw: bytes) -> _Body:
    """The body of a request.

    Raises:
        RequestError: it is no JSON object or not as `kind` declares; `param` names the field.
    """
    return check(kind, load(raw))


def load(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is. RequestError where it is none."""
    try:
        data = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(data, dict):
        raise RequestError(f"The body must be a JSON object, not {short(data)}.", code="invalid_json")
    return data


def check(kind: type[_Body], data: dict[str, Any]) -> _Body:
    """A body as `kind` declares it. RequestError where it is not; `param` names the field."""
    told: list[str] = []
    try:
        body = kind.model_validate(data, context=told)
    except ValidationError as error:
        raise _to_request_error(kind, error.errors(include_url=False)[0]) from error
    if isinstance(body, GenerationBody):
        body.ignored.extend(told)
    return body


def _to_request_error(kind: type[Body], details: ErrorDetails) -> RequestError:
    """The first thing that is wrong, in words that name the field."""
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return cause
    missing = isinstance(cause, _MissingError)
    param = _param((*details["loc"], str(cause)) if missing else details["loc"])
    if missing or details["type"] == "missing":
        return RequestError(f"{param} is required.", param=param, code="missing_required_parameter")
    if details["type"] == "extra_forbidden":
        message = refusal(str(details["loc"][-1]), param, kind.model_fields if len(details["loc"]) == 1 else ())
        return RequestError(message, param=param, code="unknown_parameter")
    message = _describe(param, details) if cause is None else f"{param}: {cause}"
    return RequestError(message, param=param, code=_INVALID)


def _describe(param: str, details: ErrorDetails) -> str:
    said = details["msg"][0].lower() + details["msg"][1:]
    given = len(details["input"]) if details["type"] in ("too_short", "too_long") else short(details["input"])
    return f"{param}: {said.partition(' after')[0]}, not {given}."


def _param(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content") is messages[0].content."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
