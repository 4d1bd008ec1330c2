"""The examples run as they are, with a tiny model."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specdec.bench.load.process import started

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CLIENTS = [path for path in EXAMPLES if "--url" in path.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def url(model: str) -> Iterator[str]:
    """A server for the clients."""
    options = ["--threads", "1", "--cache-gb", "0.05", "--no-adaptive"]
    with started([sys.executable, "-m", "specdec", "serve", model, *options], None) as address:
        yield address.url


def run(example: Path, *arguments: str) -> str:
    """What an example prints; it imports this checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def after(label: str, printed: str) -> str:
    """The rest of the line that a label begins."""
    return next(line.partition(label)[2] for line in printed.splitlines() if label in line)


@pytest.mark.parametrize("example", [path for path in EXAMPLES if path not in CLIENTS], ids=lambda path: path.stem)
def test_examples_without_a_server(example: Path, model: str) -> None:
    printed = run(example, "--model", model)
    assert printed
    if example.stem == "offline":
        assert printed.count("whole: ") == 2
        assert float(after("With a prediction: ", printed).split()[0]) >= 1.0
    if example.stem == "own_drafter":
        assert after("without drafts: ", printed) == "True"
        assert int(after("accepted ", printed).split()[2]) > 0, "drafts were verified"


@pytest.mark.parametrize("example", CLIENTS, ids=lambda path: path.stem)
def test_clients(example: Path, url: str) -> None:
    printed = run(example, "--url", url)
    if example.stem == "http_client":
        assert after("whole: ", printed) == after("streamed: ", printed)
        assert "refused with 400" in printed
        assert "temperature" in after("refused", printed)
    if example.stem == "openai_client":
        assert " tokens]" in printed
        assert "(most likely: " in printed
        assert "[accepted " in printed
