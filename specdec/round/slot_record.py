"""What the host writes of one slot, as one record: sent in one copy, and put in its places by one launch.

A sequence that enters changes a dozen tensors; one copy for each would take the host longer than a round of a small model takes
the device.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from specdec.round.graphs import recording
from specdec.round.transfer import write

_ALIGNMENT = 16


class SlotRecord:
    """Args:
    targets: each tensor that is written, and its dimension of slots.
    """

    def __init__(self, targets: Sequence[tuple[Tensor, int]]) -> None:
        device = targets[0][0].device
        sizes = [8, *(target.select(dim, 0).numel() * target.element_size() for target, dim in targets)]
        starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
        self._host = np.zeros(starts[-1], np.uint8)
        self._bytes = torch.zeros(starts[-1], dtype=torch.uint8, device=device)
        self._slot = self._host[:8].view(np.int64)
        self._slot_1 = self._bytes[:8].view(torch.int64)
        self._values: list[npt.NDArray[np.generic]] = []
        self._puts: list[tuple[Tensor, int, Tensor]] = []
        for (target, dim), start, size in zip(targets, starts[1:], sizes[1:], strict=False):
            shape = target.select(dim, 0).shape
            dtype = np.dtype(str(target.dtype).removeprefix("torch."))
            self._values.append(self._host[start : start + size].view(dtype).reshape(shape))
            self._puts.append((target, dim, self._bytes[start : start + size].view(target.dtype).view(shape).unsqueeze(dim)))
        self._graph: torch.cuda.CUDAGraph | None = None

    def write(self, slot: int, values: Sequence[npt.ArrayLike]) -> None:
        """The values of each target, in order, as they are for one slot; of those that are shorter, the rest means nothing.
        What runs before still reads the old ones."""
        self._slot[0] = slot
        for place, value in zip(self._values, values, strict=True):
            place[: len(value)] = value  # type: ignore[arg-type]
        write(self._bytes, self._host)
        if self._graph is not None:
            self._graph.replay()
            return
        self._put()
        if self._bytes.device.type == "cuda":
            self._graph = torch.cuda.CUDAGraph()
            with recording(self._graph, None):
                self._put()

    def _put(self) -> None:
        for target, dim, value in self._puts:
            target.index_copy_(dim, self._slot_1, value)
