"""Checkpoints as named tensors, read one at a time. Names are Hugging Face's, whatever the file calls them."""

import json
import math
from collections.abc import Collection, Mapping
from io import FileIO
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from specdec.errors import ConfigError
from specdec.models.damage import damaged, read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_MOST_HEADER_BYTES = 100_000_000  # as the format says


class Checkpoint(Protocol):
    """Tensors on disk. A context manager: open files are closed at its end."""

    def names(self) -> Collection[str]:
        """Every tensor, under Hugging Face's name."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it. ConfigError where it is of a type that `read` does not know."""
        ...

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor in memory of its own, converted, and dequantised where it is quantised."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...


class _Entry(NamedTuple):
    path: Path
    start: int  # byte in the file
    size: int  # bytes
    dtype: str
    shape: tuple[int, ...]


class SafetensorsCheckpoint:
    """One safetensors file, or the shards that an index file lists, in a folder.

    The files are read rather than mapped: pages of a mapping would count as the process's memory beside the weights.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers; ConfigError where there are no weights or a file is missing or damaged."""
        self._files: dict[Path, FileIO] = {}
        self._entries: dict[str, _Entry] = {}
        for path in weight_files(folder):
            self._entries |= _read_entries(path)

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise ConfigError(f"Tensor {name} has dtype {entry.dtype}, which is not supported; known: {', '.join(_DTYPES)}.")
        return entry.shape

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        entry = self._entries[name]
        if entry.path not in self._files:
            self._files[entry.path] = entry.path.open("rb", buffering=0)
        file = self._files[entry.path]
        raw = torch.empty(entry.size, dtype=torch.uint8)
        view = memoryview(raw.numpy().data)
        file.seek(entry.start)
        while view:
            count = file.readinto(view)
            if not count:
                raise _cut_short(entry.path, name)
            view = view[count:]
        return raw.view(_DTYPES[entry.dtype]).view(entry.shape).to(dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()


def weight_files(folder: Path) -> list[Path]:
    """The files with a folder's tensors: the one that holds all, else those that the index lists, by whatever name.

    Raises:
        ConfigError: there are none, one is missing, or the index is damaged.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"{folder / WHOLE} is missing: only safetensors weights are read ({WHOLE}, or {INDEX} and its shards)."
        )
    paths = [folder / name for name in shard_names(folder)]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path} is missing, and {INDEX} lists it; fetch it.")
    return paths


def shard_names(folder: Path) -> list[str]:
    """The files that the index lists. Raises ConfigError where it is damaged, or leads out of the folder."""
    path = folder / INDEX
    weight_map = read_json(path).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(name, str) for name in weight_map.values())):
        raise damaged(path, "it has no weight_map from tensors to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise damaged(path, f"it lists {name}, which is not in its folder")
    return names


def _read_entries(path: Path) -> dict[str, _Entry]:
    """Where the tensors of a safetensors file lie, all of them within it."""
    length = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(length - 8, _MOST_HEADER_BYTES):
            raise damaged(path, "it is not a safetensors file")
        try:
            header = json.loads(file.read(size))
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header holds no tensors")
    found = {}
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        try:
            found[name] = _entry(path, fields, 8 + size)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"its header does not say where tensor {name} lies") from error
        if found[name].start + found[name].size > length:
            raise _cut_short(path, name)
    return found


def _entry(path: Path, fields: Mapping[str, Any], start: int) -> _Entry:
    """ValueError, KeyError or TypeError where the fields do not fit together."""
    shape, (begin, end), dtype = fields["shape"], fields["data_offsets"], str(fields["dtype"])
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or end < begin:
        raise ValueError("sizes")
    if dtype in _DTYPES and end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError("size of the data")
    return _Entry(path, start + begin, end - begin, dtype, tuple(shape))


def _cut_short(path: Path, name: str) -> ConfigError:
    return ConfigError(f"{path} ends in the middle of tensor {name}; fetch it again.")
