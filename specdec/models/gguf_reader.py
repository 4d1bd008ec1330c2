"""The GGUF container (llama.cpp's format, versions 2 and 3): metadata and tensors, read without mapping the file.

The gguf package's own reader keeps an object per string, which for a vocabulary costs seconds and 160 MB; its
dequantisers are used here.
"""

import functools
import math
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from specdec.errors import ConfigError
from specdec.models.damage import damaged

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LEAST_VALUE_BYTES, _LEAST_TENSOR_BYTES, _LEAST_STRING_BYTES = 13, 24, 8
_MOST_DIMS = 4  # ggml's
_CHUNK_ELEMENTS = 1 << 22  # dequantised at a time
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """Where a tensor lies. shape: outermost dimension first, as torch has it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: int  # ggml's type number
    start: int  # byte in the file

    def stacked(self, index: int) -> "GgufTensor":
        """One matrix of a stack of them."""
        inner = self.shape[1:]
        one = replace(self, shape=inner)
        return replace(one, start=self.start + index * one.num_bytes)

    @property
    def num_bytes(self) -> int:
        """In the file. ConfigError for an unknown type, or rows that are no whole number of its blocks."""
        try:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(self.kind)]
        except ValueError as error:
            raise ConfigError(f"Tensor {self.name} in {self.path} has the unknown GGUF type {self.kind}.") from error
        if not all(self.shape) or not self.shape or self.shape[-1] % block:
            raise damaged(self.path, f"tensor {self.name} has shape {list(self.shape)}")
        return math.prod(self.shape) // int(block) * int(size)

    def check_type(self) -> None:
        """ConfigError where `read` does not know the tensor's type."""
        if not _can_dequantize(self.kind):
            name = gguf.GGMLQuantizationType(self.kind).name
            raise ConfigError(f"Tensor {self.name} has GGUF type {name}, which is not supported.")

    def read(self, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`, dequantised some rows at a time."""
        kind = gguf.GGMLQuantizationType(self.kind)
        width = self.shape[-1]
        out = torch.empty(math.prod(self.shape) // width, width, dtype=dtype)
        row_bytes = self.num_bytes // max(len(out), 1)
        chunk = max(1, _CHUNK_ELEMENTS // width)
        with self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, len(out), chunk):
                rows = out[first : first + chunk]
                raw = np.fromfile(file, np.uint8, len(rows) * row_bytes)
                if len(raw) < len(rows) * row_bytes:
                    raise _cut_short(self)
                values = dequantize(raw.reshape(len(rows), row_bytes), kind)
                rows.copy_(torch.from_numpy(values.astype(np.float32, copy=False)))
        return out.view(self.shape)


@functools.cache
def _can_dequantize(kind: int) -> bool:
    known = gguf.GGMLQuantizationType(kind)
    _, size = gguf.GGML_QUANT_SIZES[known]
    try:
        dequantize(np.zeros((1, size), np.uint8), known)
    except NotImplementedError:
        return False
    return True


class GgufReader:
    """Metadata and tensors of a model: one file, or all the parts that its name counts (`name-00001-of-00003.gguf`).

    The metadata is that of the first part, whichever part is named.
    """

    def __init__(self, path: Path) -> None:
        """ConfigError where a file is missing, not GGUF, or not whole."""
        self.tensors: dict[str, GgufTensor] = {}
        parts = [_Part(part) for part in part_paths(path)]
        self.path, self.metadata = parts[0].path, parts[0].metadata
        count = self.metadata.get("split.count", 1)
        if count not in (0, len(parts)):
            raise ConfigError(
                f"{path} is one of {count} parts, which are found by their names: name-00001-of-{count:05}.gguf and so on."
            )
        for part in parts:
            self.tensors |= part.tensors


def part_paths(path: Path) -> list[Path]:
    """All files of a model of which one is named. Raises ConfigError where one is missing."""
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    paths = []
    for number in range(1, count + 1):
        part = path.with_name(f"{found['stem']}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise ConfigError(f"{part} is missing: {path.name} is one of {count} parts; fetch it.")
        paths.append(part)
    return paths or [path]


class _Part:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self._length = path.stat().st_size
        try:
            with path.open("rb") as file:
                self._read_header(file)
        except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise error if isinstance(error, ConfigError) else damaged(path, "it is not a whole GGUF file") from error

    def _read_header(self, file: BinaryIO) -> None:
        start = file.read(24)
        magic, version, num_tensors, num_values = struct.unpack("<4sIQQ", start) if len(start) == 24 else (b"", 0, 0, 0)
        if magic != b"GGUF" or version not in (2, 3):
            raise damaged(self.path, "it is not a GGUF file of version 2 or 3")
        self._room(num_values * _LEAST_VALUE_BYTES)
        self._room(num_tensors * _LEAST_TENSOR_BYTES)
        for _ in range(num_values):
            key = self._string(file)
            self.metadata[key] = self._value(file, _scalar(file, "I"))
        infos = [self._tensor_info(file) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise damaged(self.path, f"general.alignment is {alignment!r}")
        data = -(-file.tell() // alignment) * alignment
        for name, shape, kind, offset in infos:
            tensor = GgufTensor(path=self.path, name=name, shape=shape, kind=kind, start=data + offset)
            if tensor.start + tensor.num_bytes > self._length:
                raise _cut_short(tensor)
            self.tensors[name] = tensor

    def _room(self, size: int) -> int:
        """The size, where the file is as large; a count that a damaged file claims may be anything."""
        if size > self._length:
            raise damaged(self.path, "it is not a whole GGUF file: it counts more than it can hold")
        return size

    def _string(self, file: BinaryIO) -> str:
        return file.read(self._room(_scalar(file, "Q"))).decode("utf-8")

    def _value(self, file: BinaryIO, kind: int) -> Any:
        if kind == _STRING:
            return self._string(file)
        if kind != _ARRAY:
            return _scalar(file, _SCALARS[kind])
        item, length = struct.unpack("<IQ", file.read(12))
        if item in _SCALARS:
            self._room(length * struct.calcsize(_SCALARS[item]))
            code = f"<{length}{_SCALARS[item]}"
            return list(struct.unpack(code, file.read(struct.calcsize(code))))
        self._room(length * _LEAST_STRING_BYTES)
        return [self._value(file, item) for _ in range(length)]

    def _tensor_info(self, file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(file)
        num_dims = _scalar(file, "I")
        if num_dims > _MOST_DIMS:
            raise damaged(self.path, f"tensor {name} has {num_dims} dimensions")
        *dims, kind, offset = struct.unpack(f"<{num_dims}QIQ", file.read(8 * num_dims + 12))
        return name, tuple(reversed(dims)), kind, offset


def _cut_short(tensor: GgufTensor) -> ConfigError:
    return ConfigError(f"{tensor.path} ends in the middle of tensor {tensor.name}; fetch it again.")


def _scalar(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]
