"""Suites of prompts, and prompts made ready to run; no model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from specdec.bench import suite
from specdec.bench.cases import prepare
from specdec.errors import ConfigError
from specdec.progress import NoProgress

GOOD = {"id": "a", "content_type": "chat", "turns": ["Hello"]}


def write(folder: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "chat.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_built_in_suite_has_ten_content_types_of_eight_prompts() -> None:
    prompts = suite.load()
    types = [prompt.content_type for prompt in prompts]
    assert len(set(types)) == 10
    assert {types.count(name) for name in types} == {8}
    edits = [prompt for prompt in prompts if prompt.content_type == "code-editing"]
    assert all(prompt.prediction and prompt.prediction in prompt.turns[0] for prompt in edits)
    assert all(len(prompt.turns) > 1 for prompt in prompts if prompt.content_type == "multi-turn")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "not JSON"),
        ([1], "the line"),
        ({"id": "a", "turns": ["x"]}, "content_type"),
        (GOOD | {"turns": "x"}, "turns"),
        (GOOD | {"turns": []}, "turns"),
        (GOOD | {"turns": ["x", ""]}, "turns"),
        (GOOD | {"id": 7}, "id"),
        (GOOD | {"tools": ["x"]}, "tools"),
        (GOOD | {"prediction": 1}, "prediction"),
        (GOOD | {"predicton": "x"}, "predicton"),
        (GOOD, "used twice"),
    ],
)
def test_bad_line_names_file_line_and_field(tmp_path: Path, line: object, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        suite.load(write(tmp_path, GOOD, "", line))
    assert "chat.jsonl:3" in str(caught.value)


def test_suite_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        suite.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="no prompts"):
        suite.load(write(tmp_path, "", ""))


def test_select_keeps_order_and_refuses_unknown_types() -> None:
    prompts = suite.load()
    chosen = suite.select(prompts, ("math", "chat"), 3)
    assert [prompt.content_type for prompt in chosen] == ["math"] * 3 + ["chat"] * 3
    with pytest.raises(ConfigError, match="poetry"):
        suite.select(prompts, ("poetry",), None)


class Letters:
    """A tokenizer whose tokens are characters."""

    has_chat_template = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        return self.encode("|".join(message["content"] for message in messages))


def test_later_turns_follow_the_answers_of_earlier_ones() -> None:
    prompt = suite.Prompt(id="p", content_type="chat", turns=("one", "two"), prediction="yes")
    cases = prepare([prompt], Letters(), lambda _, ids: f"answer of {len(ids)}", 100, NoProgress()).fitting
    assert [case.id for case in cases] == ["p/1", "p/2"]
    assert bytes(cases[1].prompt_ids) == b"one|answer of 3|two"
    assert (cases[0].prediction_ids, bytes(cases[1].prediction_ids)) == ((), b"yes")


def test_prompts_that_do_not_fit_are_named() -> None:
    prompts = [
        suite.Prompt(id="short", content_type="chat", turns=("abc",)),
        suite.Prompt(id="long", content_type="chat", turns=("abcd", "never asked")),
    ]
    cases = prepare(prompts, Letters(), lambda *_: pytest.fail("asked for an answer"), 3, NoProgress())
    assert ([case.id for case in cases.fitting], cases.skipped) == (["short"], ("long/1",))
    with pytest.raises(ConfigError, match="No prompt has at most 1"):
        prepare(prompts, Letters(), lambda *_: "", 1, NoProgress())
