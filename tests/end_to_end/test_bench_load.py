"""`specdec bench load` on a tiny model: through the engine, and through a server that is a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from specdec.bench.load.process import started
from specdec.cli.app import app
from specdec.errors import ConfigError

COMMON = ["--requests", "4", "--repeats", "1", "--max-tokens", "8", "--threads", "1", "--no-adaptive"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    """Byte-level tokens make long prompts of the built-in suite."""
    return str(tiny_checkpoint("llama", max_position_embeddings=8192))


def load(model: str, *arguments: str) -> dict[str, Any]:
    """The last line of standard output."""
    result = CliRunner().invoke(app, ["bench", "load", model, *COMMON, *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def medians(contender: dict[str, Any]) -> dict[str, float]:
    return {name: spread["median"] for name, spread in contender.items() if spread is not None}


def test_plain_and_drafted_take_turns_beside_odd_requests(model: str) -> None:
    report = load(model, "--concurrency", "3", "--content", "chat", "--odd", "biases,drafter")
    assert {"versions", "hardware", "settings"} <= report.keys()
    assert report["settings"]["engine"]["max_batch"] == 3
    (level,) = report["results"]
    assert level["traffic"] == "2 in flight"
    names = ["plain", "drafted", "plain beside biases", "drafted beside biases", "drafted beside drafter"]
    assert list(level["contenders"]) == names
    ratios = ["drafted / plain", *(f"{name} / {name.split()[0]}" for name in names[2:])]
    assert list(level["tokens_per_second_ratios"]) == ratios
    for contender in level["contenders"].values():
        found = medians(contender)
        assert found["requests"] >= 4
        assert found["output_tokens_per_second"] > 0
        assert found["mean_in_flight"] == pytest.approx(2.0, abs=0.2)
        assert found["between_tokens_seconds_p50"] <= found["between_tokens_seconds_p99"]
    assert medians(level["contenders"]["plain"])["acceptance_length"] == 1.0


def test_arrivals_of_random_prompts_that_were_seen_before(model: str) -> None:
    report = load(model, "--rate", "8", "--prompt-tokens", "80", "--seen", "--drafter", "none", "--warm-up", "2")
    (level,) = report["results"]
    found = medians(level["contenders"]["plain"])
    assert level["traffic"] == "8 a second"
    assert found["cached_prompt_share"] > 0.5, "each prompt's first page is known"
    assert "once" in report["settings"]["prompts_seen_before"]


def test_the_server_is_measured_beside_the_engine(model: str) -> None:
    report = load(model, "--concurrency", "2", "--content", "chat", "--drafter", "ngram", "--server", "--api-key", "sesame")
    (level,) = report["results"]
    assert list(level["contenders"]) == ["plain", "drafted", "server plain", "server drafted"]
    assert {"server plain / plain", "server drafted / drafted"} <= level["tokens_per_second_ratios"].keys()
    served = medians(level["contenders"]["server drafted"])
    assert served["requests"] >= 4
    assert served["acceptance_length"] >= 1.0
    assert served["cached_prompt_share"] < 0.5
    tokens_of_requests = served["requests"] * 8 / served["seconds"]
    assert served["output_tokens_per_second"] == pytest.approx(tokens_of_requests, rel=0.6), "begun and ended ones even out"


def test_a_server_that_runs_is_asked_chat_and_tokens(model: str) -> None:
    options = ["--drafter", "ngram", "--threads", "1", "--cache-gb", "0.1", "--no-adaptive"]
    with started([sys.executable, "-m", "specdec", "serve", model, *options], None) as address:
        chat = load(model, "--url", address.url, "--concurrency", "2", "--content", "chat")
        tokens = load(model, "--url", f"{address.url}/v1", "--concurrency", "2", "--prompt-tokens", "5", "--odd", "logprobs")
    (level,) = chat["results"]
    assert list(level["contenders"]) == ["server plain", "server drafted"]
    assert medians(level["contenders"]["server plain"])["acceptance_length"] == 1.0
    assert chat["settings"]["engine"] is None
    (level,) = tokens["results"]
    assert "server drafted beside logprobs / server drafted" in level["tokens_per_second_ratios"]


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specdec", "serve", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"did not start:\n(.|\n)*config\.json"), started(command, None):
        pass
