"""Prompt suites: folders of JSONL files, one prompt a line, several user turns in each.

A line holds `id`, `content_type` and `turns` (user turns in order; a later one follows the model's own answer), and may
hold `tools` (OpenAI function tools), `prediction` (text that the last answer is expected to resemble), `response_format`
(kept with the prompt, not enforced), `source` and `license`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError

BUILT_IN = Path(__file__).with_name("suite")
_REQUIRED = ("id", "content_type", "turns")
_OPTIONAL = ("tools", "prediction", "response_format", "source", "license")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One conversation to measure on."""

    id: str
    content_type: str
    turns: tuple[str, ...]
    tools: tuple[dict[str, Any], ...] = ()
    prediction: str | None = None


def load(folder: Path | None = None) -> list[Prompt]:
    """Read a suite, the one that ships with specdec where none is named.

    Raises:
        ConfigError: no such folder, no prompts in it, or a bad line; the message names file, line and field.
    """
    chosen = folder or BUILT_IN
    files = sorted(chosen.glob("*.jsonl"))
    if not files:
        raise ConfigError(f"The suite {chosen} is not a folder with .jsonl files.")
    prompts: dict[str, Prompt] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                prompt = _read(line, f"{file}:{number}")
                if prompt.id in prompts:
                    raise ConfigError(f"{file}:{number}: id {prompt.id!r} is used twice.")
                prompts[prompt.id] = prompt
    if not prompts:
        raise ConfigError(f"The suite {chosen} has no prompts.")
    return list(prompts.values())


def select(prompts: list[Prompt], content: tuple[str, ...], per_type: int | None) -> list[Prompt]:
    """The first `per_type` prompts (None: all) of each content type named (none named: of all).

    Raises:
        ConfigError: a content type that the suite does not have.
    """
    known = list(dict.fromkeys(prompt.content_type for prompt in prompts))
    for name in content:
        if name not in known:
            raise ConfigError(f"The suite has no content type {name!r}; it has {', '.join(known)}.")
    chosen: list[Prompt] = []
    for name in content or known:
        chosen += [prompt for prompt in prompts if prompt.content_type == name][:per_type]
    return chosen


def _read(line: str, place: str) -> Prompt:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place}: not JSON: {error}") from error
    _require(isinstance(fields, dict), place, "the line", "a JSON object")
    for name in _REQUIRED:
        _require(name in fields, place, name, "given")
    for name in fields:
        if name not in _REQUIRED + _OPTIONAL:
            raise ConfigError(f"{place}: unknown field {name!r}; known are {', '.join(_REQUIRED + _OPTIONAL)}.")
    for name in ("id", "content_type"):
        _require(isinstance(fields[name], str) and fields[name] != "", place, name, "a non-empty string")
    turns, tools, prediction = fields["turns"], fields.get("tools") or [], fields.get("prediction")
    _require(_is_list_of(turns, str) and turns != [] and all(turns), place, "turns", "a list of one or more non-empty strings")
    _require(_is_list_of(tools, dict), place, "tools", "a list of objects")
    _require(prediction is None or isinstance(prediction, str), place, "prediction", "a string")
    return Prompt(
        id=fields["id"], content_type=fields["content_type"], turns=tuple(turns), tools=tuple(tools), prediction=prediction
    )


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _require(ok: bool, place: str, name: str, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"{place}: {name} must be {wanted}.")
