"""Checkpoints as named tensors, read one at a time. Names are Hugging Face's, whatever the file calls them."""

import json
from collections.abc import Collection
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from specdec.errors import ConfigError

_INDEX = "model.safetensors.index.json"
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Checkpoint(Protocol):
    """Tensors on disk. A context manager: open files are closed at its end."""

    def names(self) -> Collection[str]:
        """Every tensor, under Hugging Face's name."""
        ...

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor in memory of its own, converted, and dequantised where it is quantised."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...


class SafetensorsCheckpoint:
    """One safetensors file, or the shards that an index file lists, in a folder.

    The files are read rather than mapped: pages of a mapping would count as the process's memory beside the weights.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers; ConfigError where there are no weights or a shard is missing or damaged."""
        self._files: dict[Path, FileIO] = {}
        self._entries: dict[str, tuple[FileIO, int, dict[str, Any]]] = {}
        for path in _weight_files(folder):
            file = self._files[path] = path.open("rb", buffering=0)
            header, start = _read_header(file, path)
            self._entries |= {name: (file, start, entry) for name, entry in header.items() if name != "__metadata__"}

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        file, start, entry = self._entries[name]
        if entry["dtype"] not in _DTYPES:
            raise ConfigError(f"Tensor {name} has dtype {entry['dtype']}, which is not supported; known: {', '.join(_DTYPES)}.")
        begin, end = entry["data_offsets"]
        raw = torch.empty(end - begin, dtype=torch.uint8)
        view = memoryview(raw.numpy().data)
        file.seek(start + begin)
        while view:
            count = file.readinto(view)
            if not count:
                raise ConfigError(f"{file.name} ends in the middle of tensor {name}; fetch it again.")
            view = view[count:]
        return raw.view(_DTYPES[entry["dtype"]]).view(entry["shape"]).to(dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        names = set(json.loads((folder / _INDEX).read_text())["weight_map"].values())
        paths = [folder / name for name in sorted(names)]
    else:
        paths = [folder / "model.safetensors"]
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                f"{path} is missing: only safetensors weights are read (model.safetensors, or {_INDEX} and its shards)."
            )
    return paths


def _read_header(file: FileIO, path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file and where its data starts."""
    size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= path.stat().st_size - 8:
        raise ConfigError(f"{path} is not a safetensors file.")
    header: dict[str, Any] = json.loads(file.read(size))
    return header, 8 + size
