"""Commands that load a model, from their arguments to what they print."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from specdec.cli.app import app
from specdec.config import EngineConfig
from specdec.llm import LLM
from specdec.request import Request, SamplingParams


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    """Byte-level tokens make long prompts of the built-in suite."""
    return str(tiny_checkpoint("llama", max_position_embeddings=8192))


def run(*arguments: str) -> tuple[str, str]:
    """Standard output and error of a command that succeeds."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def last_line(stdout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return found


def test_generate_prints_the_answer_and_then_one_line_about_it(model: str) -> None:
    llm = LLM.from_config(EngineConfig(model=model, drafters=(), cache_gb=0.1))
    prompt = tuple(llm.tokenizer.encode("the winner is in the inn"))
    sampling = SamplingParams(temperature=0.7, seed=3, max_tokens=24)
    (expected,) = llm.generate([Request(request_id="1", prompt_ids=prompt, sampling=sampling)])
    options = ["--raw", "--temperature", "0.7", "--seed", "3", "--max-tokens", "24", "--cache-gb", "0.1"]
    stdout, stderr = run("generate", model, "-p", "the winner is in the inn", *options)
    assert stdout == expected.text + "\n"
    assert stderr.splitlines()[-1].startswith(f"[{len(expected.token_ids)} tokens in ")
    assert "tok/s, acceptance length" in stderr


def test_info_tells_family_size_memory_and_drafters(model: str) -> None:
    stdout, _ = run("info", model, "--draft-model", model)
    for words in ("llama", "parameters", "weights in float32", "cache of a page", "drafter suffix", "fits; it has 100%"):
        assert words in stdout


def test_bench_lossless_finds_no_difference(model: str) -> None:
    stdout, _ = run("bench", "lossless", model, "--quick", "--draft-model", model)
    report = last_line(stdout)
    assert report["bench"] == "lossless"
    assert report["results"]["same"]
    for row in report["results"]["settings"]:
        assert row["tokens"] > 0
        assert [row[name] for name in row if name.startswith("differing")] == [0, 0, 0], row
    assert any(row["preemptions"] for row in report["results"]["settings"])
    assert {row["setting"] for row in report["results"]["settings"] if row["accepted_drafts"]} > {
        "adversarial trees, 8 at once"
    }


def test_bench_acceptance_writes_its_reports(model: str, tmp_path: Path) -> None:
    arguments = ["--content", "chat,extraction", "--prompts", "1", "--max-tokens", "8", "--output", str(tmp_path)]
    stdout, _ = run("bench", "acceptance", model, *arguments)
    report = last_line(stdout)
    assert report["bench"] == "acceptance"
    assert {"versions", "hardware", "settings"} <= report.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"acceptance.json", "acceptance.md", "acceptance.png"}
    assert json.loads((tmp_path / "acceptance.json").read_text())["results"].keys() == report["results"].keys()


def test_bench_speed_compares_with_plain_decoding(model: str) -> None:
    stdout, _ = run("bench", "speed", model, "--content", "chat", "--prompts", "1", "--max-tokens", "8", "--repeats", "1")
    assert last_line(stdout)["bench"] == "speed"
