"""Models by the names of the settings: revisions of the hub, caches that cannot be written, which files they are."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from specdec.errors import ConfigError, ModelNotFoundError
from specdec.models.source import Source, resolve


def test_a_revision_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def download(hub_id: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("nothing is cached")
        asked.append((hub_id, options["revision"], "model.safetensors" in options["allow_patterns"]))
        return str(tmp_path)

    def listed(hub_id: str, **options: Any) -> SimpleNamespace:
        asked.append((hub_id, options["revision"], False))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors")])

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.model_info", listed)
    assert resolve("owner/name", revision="v2").path == tmp_path
    assert asked == [("owner/name", "v2", weights) for weights in (False, False, True)]
    asked.clear()
    assert resolve("smollm2-135m", revision="abc", weights=False).name == "smollm2-135m"
    assert asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", "abc", False)] * 2


def test_files_on_disk_have_no_revision(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("llama")
    assert resolve(str(folder), revision="v2").path == folder


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (LocalEntryNotFoundError("offline"), ModelNotFoundError, "the hub does not answer"),
        (PermissionError(13, "Permission denied", "/cache/hub"), ConfigError, "/cache/hub: Permission denied. HF_HOME"),
        (RuntimeError("Could not determine home directory."), ConfigError, "HF_HOME and SPECDEC_CACHE"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], words: str
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(kind, match=words) as caught:
        resolve("owner/name", revision="v2")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_name_of_the_hub_is_told() -> None:
    with pytest.raises(ModelNotFoundError, match="a/b/c"):
        resolve("a/b/c", revision="v2")


def test_an_identity_changes_with_the_files(tmp_path: Path) -> None:
    first, second, other = (tmp_path / f"{name}.gguf" for name in ("m-00001-of-00002", "m-00002-of-00002", "other"))
    for path in (first, second, other):
        path.write_bytes(b"GGUF")
    source = Source(name="m", path=first)
    seen = [source.identity]
    os.utime(other, ns=(1, 1))
    assert source.identity == seen[0], "another model beside it"
    os.utime(second, ns=(1, 1))
    seen.append(source.identity)
    second.write_bytes(b"GGUF more")
    seen.append(source.identity)
    assert len(set(seen)) == 3
