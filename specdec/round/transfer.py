"""Host arrays on the device, in the order of its stream and without waiting for it.

What is on its way lies in pinned memory that is allocated once: to pin memory for every small table takes longer than a round.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specdec.arrays import IntArray

_SEGMENT = 1 << 20  # bytes; larger arrays are pinned by themselves
_SEGMENTS = 8  # one is written again when the device has read it
_ALIGNMENT = 64


def to_device(values: IntArray | Sequence[int], device: torch.device) -> Tensor:
    """int64 values as a tensor."""
    array = np.asarray(values, np.int64)
    if device.type != "cuda":
        return torch.from_numpy(array.copy())
    return _arena(device).stage(array).to(device, non_blocking=True)


def write(target: Tensor, values: Sequence[int] | Sequence[float] | npt.NDArray[Any]) -> None:
    """Copy values into a tensor of the same shape; what runs before still reads the old ones."""
    array = np.asarray(values, np.dtype(str(target.dtype).removeprefix("torch.")))
    if target.device.type == "cuda":
        target.copy_(_arena(target.device).stage(array), non_blocking=True)
    else:
        target.copy_(torch.from_numpy(array))


class _Arena:
    """Pinned memory, used in turn."""

    def __init__(self) -> None:
        self._bytes = torch.empty(_SEGMENT * _SEGMENTS, dtype=torch.uint8, pin_memory=True)
        self._read: list[torch.cuda.Event | None] = [None] * _SEGMENTS
        self._segment = self._used = 0

    def stage(self, array: npt.NDArray[Any]) -> Tensor:
        """A pinned copy of an array."""
        source = torch.from_numpy(np.ascontiguousarray(array))
        if array.nbytes > _SEGMENT:
            return source.pin_memory()
        if self._used + array.nbytes > _SEGMENT:
            self._next_segment()
        start = self._segment * _SEGMENT + self._used
        self._used += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        staged = self._bytes[start : start + array.nbytes].view(source.dtype).view(source.shape)
        return staged.copy_(source)

    def _next_segment(self) -> None:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._read[self._segment] = event
        self._segment, self._used = (self._segment + 1) % _SEGMENTS, 0
        if (before := self._read[self._segment]) is not None:
            before.synchronize()


@functools.cache
def _arena(device: torch.device) -> _Arena:
    del device  # one for each, as each has a stream of its own
    return _Arena()
