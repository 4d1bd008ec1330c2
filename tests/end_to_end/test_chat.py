"""`specdec chat`: turns of a conversation, and which of their tokens are shown as guessed right."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from specdec import LLM, SamplingParams
from specdec.cli.app import app
from specdec.cli.chat import _accepted, pieces

SAMPLING = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def llm(model: str) -> LLM:
    return LLM(model, dtype="float32", cache_gb=0.05, adaptive=False)


def talk(model: str, *lines: str, **environment: str) -> tuple[str, str]:
    command = ["chat", model, "--temperature", "0", "--max-tokens", "30", "--no-adaptive", "--dtype", "float32"]
    result = CliRunner().invoke(app, command, input="".join(f"{line}\n" for line in lines), env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_turns_of_a_conversation(model: str, llm: LLM) -> None:
    first = [{"role": "user", "content": "the inn"}]
    sampling = SamplingParams(temperature=0, max_tokens=30)
    answer = llm.chat(first, sampling)[0].text
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "the hen"}]
    stdout, stderr = talk(model, "the inn", "", "the hen", "/new", "the inn", "/quit", "never asked")
    again = llm.chat(second, sampling)[0].text
    assert stdout.count(answer) == 2, "before and after /new"
    assert again in stdout
    assert stderr.count("tok/s, acceptance length") == 3


def test_the_input_may_just_end(model: str) -> None:
    assert "tok/s" in talk(model, "the inn")[1]


def test_a_message_without_room_is_told_and_forgotten(model: str, llm: LLM) -> None:
    stdout, stderr = talk(model, "x" * 2000, "the inn")
    assert "specdec: This server's context holds 512 tokens" in stderr
    assert llm.chat([{"role": "user", "content": "the inn"}], SamplingParams(temperature=0, max_tokens=30))[0].text in stdout


def test_accepted_drafts_are_what_the_statistics_count(llm: LLM) -> None:
    """And the pieces are the text, whole."""
    prompt = llm.tokenizer.encode("the inn the inn the inn")
    told, drafted_tokens, text = 0, 0, ""
    for output in llm.stream(prompt, SAMPLING):
        accepted = _accepted(output, told)
        told += accepted
        drafted, own = pieces(output, accepted, llm.tokenizer)
        assert drafted + own == output.text
        drafted_tokens += bool(drafted)
        text += drafted + own
        last = output
    assert last.stats is not None
    assert told == last.stats.num_accepted_tokens > 0
    assert drafted_tokens
    assert text == llm.generate(prompt, SAMPLING)[0].text


def test_colours_on_a_terminal_alone(model: str) -> None:
    plain, _ = talk(model, "in the inn the inn the inn")
    coloured, _ = talk(model, "in the inn the inn the inn", FORCE_COLOR="1", TERM="xterm")
    assert GREEN not in plain
    assert GREEN in coloured
    assert coloured.replace(GREEN, "").replace(PLAIN, "") == plain


@pytest.mark.skipif(os.name != "posix", reason="a home that is no folder")
def test_a_home_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPECDEC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/dev/null/cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: Path("/dev/null/hub/token").read_text())
    result = CliRunner().invoke(app, ["download", "smollm2-135m"])
    (line,) = [line for line in result.stderr.splitlines() if not line.endswith(": done")]
    assert (result.exit_code, line.startswith("specdec: smollm2-135m cannot be read or kept at /dev/null/hub")) == (2, True)
    assert "HF_HOME" in line


def test_download_prints_where_it_lies(model: str) -> None:
    result = CliRunner().invoke(app, ["download", model])
    assert result.stdout == f"{model}\n"
    assert json.loads((Path(result.stdout.strip()) / "config.json").read_text())["model_type"] == "llama"
