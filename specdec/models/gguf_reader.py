"""The GGUF container (llama.cpp's format, versions 2 and 3): metadata and tensors, read without mapping the file.

The gguf package's own reader keeps an object per string, which for a vocabulary costs seconds and 160 MB; its
dequantisers are used here.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from specdec.errors import ConfigError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CHUNK_ELEMENTS = 1 << 22  # dequantised at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """Where a tensor lies. shape: outermost dimension first, as torch has it."""

    name: str
    shape: tuple[int, ...]
    kind: int  # ggml's type number
    start: int  # byte in the file

    def stacked(self, index: int) -> "GgufTensor":
        """One matrix of a stack of them."""
        inner = self.shape[1:]
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(self.kind)]
        start = self.start + index * math.prod(inner) // block * size
        return GgufTensor(name=self.name, shape=inner, kind=self.kind, start=start)


class GgufReader:
    """Metadata and tensors of one file."""

    def __init__(self, path: Path) -> None:
        """ConfigError where the file is not GGUF, or cut short."""
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            with path.open("rb") as file:
                self._read_header(file)
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ConfigError(f"{path} is not a whole GGUF file.") from error

    def _read_header(self, file: BinaryIO) -> None:
        magic, version, num_tensors, num_values = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ConfigError(f"{self.path} is not a GGUF file of version 2 or 3.")
        for _ in range(num_values):
            key = _string(file)
            self.metadata[key] = _value(file, _scalar(file, "I"))
        infos = [_tensor_info(file) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        data = -(-file.tell() // alignment) * alignment
        for name, shape, kind, offset in infos:
            self.tensors[name] = GgufTensor(name=name, shape=shape, kind=kind, start=data + offset)

    def read(self, tensor: GgufTensor, dtype: torch.dtype) -> Tensor:
        """A tensor in `dtype`, dequantised some rows at a time."""
        try:
            kind = gguf.GGMLQuantizationType(tensor.kind)
        except ValueError as error:
            raise ConfigError(f"Tensor {tensor.name} has the unknown GGUF type {tensor.kind}.") from error
        block, size = gguf.GGML_QUANT_SIZES[kind]
        width = tensor.shape[-1]
        row_bytes = width // block * size
        out = torch.empty(math.prod(tensor.shape) // width, width, dtype=dtype)
        chunk = max(1, _CHUNK_ELEMENTS // width)
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            for first in range(0, len(out), chunk):
                rows = out[first : first + chunk]
                raw = np.fromfile(file, np.uint8, len(rows) * row_bytes)
                if len(raw) < len(rows) * row_bytes:
                    raise ConfigError(f"{self.path} ends in the middle of tensor {tensor.name}; fetch it again.")
                try:
                    values = dequantize(raw.reshape(len(rows), row_bytes), kind)
                except NotImplementedError as error:
                    raise ConfigError(f"Tensor {tensor.name} has GGUF type {kind.name}, which is not supported.") from error
                rows.copy_(torch.from_numpy(values.astype(np.float32, copy=False)))
        return out.view(tensor.shape)


def _scalar(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_scalar(file, "Q")).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _scalar(file, _SCALARS[kind])
    item, length = struct.unpack("<IQ", file.read(12))
    if item in _SCALARS:
        code = f"<{length}{_SCALARS[item]}"
        return list(struct.unpack(code, file.read(struct.calcsize(code))))
    return [_value(file, item) for _ in range(length)]


def _tensor_info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _string(file)
    num_dims = _scalar(file, "I")
    *dims, kind, offset = struct.unpack(f"<{num_dims}QIQ", file.read(8 * num_dims + 12))
    return name, tuple(reversed(dims)), kind, offset
