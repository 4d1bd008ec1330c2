"""Values of fields, in the ways that clients write them."""

from collections.abc import Iterable
from reprlib import repr as short
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from specdec.request import MAX_TOP_LOGPROBS

_MAX_STOPS = 16
_MOST_STOPPING = 256  # characters of a stop string: every token is held against all that one may begin with
# where the text is, by the type that one or the other API gives to a part
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_THOUGHT_PARTS = ("thinking", "redacted_thinking", "reasoning")  # that clients keep in their history
_ENDLESS = 2**31  # more than any vocabulary has, and as much as tokenizers take
_RESERVED = ("messages", "tools", "tokenize", "chat_template", "continue_final_message")  # words of `apply_chat_template`


def _joined(value: object, info: ValidationInfo) -> object:
    """A text, or a list of text parts that become one."""
    return "".join(_part(part, info) for part in value) if isinstance(value, list) else value


def _part(part: object, info: ValidationInfo) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind in _THOUGHT_PARTS:
        tell(info, "content", (kind,))
        return ""
    place = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if not isinstance(part, dict) or place not in part:
        raise ValueError('only text parts are supported: {"type": "text", "text": "..."}.')
    if not isinstance(part[place], str):
        raise ValueError("the text of a part must be a string.")
    tell(info, "content", (name for name in part if name not in ("type", place)))
    text: str = part[place]
    return text


def tell(info: ValidationInfo, place: str, names: Iterable[str]) -> None:
    """Take down that fields were left out."""
    if info.context is not None:
        info.context.extend(f"{place}.{name}" if place else name for name in names)


def _whole(value: object) -> object:
    """JSON has one type of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unset(*values: object) -> BeforeValidator:
    """Values that stand for none."""
    return BeforeValidator(lambda value: None if type(value) is not bool and _whole(value) in values else value)


def _one_or_list(value: object) -> object:
    return [value] if isinstance(value, str) and value else value or []


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
        if all(isinstance(item, str) for item in value):
            return value
        several = [_ids(item) for item in value]
        one = _ids(value) if None in several else None
        if one is not None or None not in several:
            return [one] if one is not None else several  # type: ignore[return-value]
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of lists of token ids, not empty.")


def _ids(value: object) -> list[int] | None:
    """Token ids; None where the value is no list of them."""
    if not isinstance(value, list):
        return None
    ids = [_whole(item) for item in value]
    if not all(type(item) is int for item in ids):
        return None
    for item in ids:
        if not 0 <= item < _ENDLESS:  # type: ignore[operator]
            raise ValueError(f"names token {item}, but token ids are 0 or more, and less than the vocabulary has.")
    return ids  # type: ignore[return-value]


def _template_variables(value: dict[str, Any]) -> dict[str, Any]:
    for name in _RESERVED:
        if name in value:
            raise ValueError(f"{name} is not a variable that may be set; give it as a field of its own.")
    return value


Text = Annotated[str, BeforeValidator(_joined)]
Whole = Annotated[int, BeforeValidator(_whole)]
ModelName = Annotated[str | None, _unset("")]
Limit = Annotated[Whole | None, _unset(-1)]
NumLogprobs = Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None
Seed = Annotated[Annotated[Whole, Field(ge=-(2**63), le=2**64 - 1)] | None, _unset(-1)]
Prompts = Annotated[Any, AfterValidator(_prompts)]  # list[str | list[int]] once checked
Stops = Annotated[
    list[Annotated[str, Field(max_length=_MOST_STOPPING)]], Field(max_length=_MAX_STOPS), BeforeValidator(_one_or_list)
]
Biases = Annotated[dict[int, float], BeforeValidator(_token_keys)]
Variables = Annotated[dict[str, Any], AfterValidator(_template_variables)]
