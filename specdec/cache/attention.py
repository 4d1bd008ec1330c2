"""Storage of what the layers keep per position, and its commit."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.models.base import CacheSpec


class KVPool:
    """Paged keys and values of all layers.

    Layers of one shape share one pair of tensors `[layers, pages, kv heads, page size, head_dim]`; so a commit moves all of
    them in one operation. A *slot* is page * page size + offset. One page more than asked for holds what nobody reads.

    Args:
        specs: one per layer.
        num_pages: pages, counted once for all layers.
        page_size: tokens per page.
        dtype: of the stored values; see `cache_dtype`.
        device: where they lie.
    """

    def __init__(
        self, specs: Sequence[CacheSpec], num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        self.spare_slot = num_pages * page_size  # for rows whose keys nobody reads
        self.device = device
        shapes: dict[tuple[int, int], list[int]] = {}
        for layer, spec in enumerate(specs):
            shapes.setdefault((spec.num_kv_heads, spec.head_dim), []).append(layer)
        self._stores: list[tuple[Tensor, Tensor]] = []
        self._layers: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(specs)
        for (num_kv_heads, head_dim), layers in shapes.items():
            shape = (len(layers), num_pages + 1, num_kv_heads, page_size, head_dim)
            keys, values = _zeros(shape, dtype, device), _zeros(shape, dtype, device)
            self._stores.append((keys, values))
            for index, layer in enumerate(layers):
                self._layers[layer] = (keys[index], values[index])

    @staticmethod
    def page_bytes(specs: Sequence[CacheSpec], page_size: int, dtype: torch.dtype) -> int:
        """Bytes of one page over all layers."""
        return sum(2 * spec.num_kv_heads * spec.head_dim for spec in specs) * page_size * dtype.itemsize

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, `[pages, kv heads, page size, head_dim]` each."""
        return self._layers[layer]

    def write(self, layer: int, pages_R: Tensor, offsets_R: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> None:
        """Store the rows' keys and values at their slots."""
        keys, values = self._layers[layer]
        keys[pages_R, :, offsets_R] = k_RKD.to(keys.dtype)
        values[pages_R, :, offsets_R] = v_RKD.to(values.dtype)

    def move(self, source_N: Tensor, target_N: Tensor) -> None:
        """Copy slots to slots in every layer: the commit of accepted nodes that were drafted off the spine."""
        for store in self._stores:
            for tensor in store:
                moved = tensor[:, source_N // self.page_size, :, source_N % self.page_size]
                tensor[:, target_N // self.page_size, :, target_N % self.page_size] = moved

    def scrub(self, pages: Sequence[int]) -> None:
        """Zero pages that may hold values that are not finite; a masked NaN would still spoil a product."""
        index = torch.as_tensor(list(pages), dtype=torch.int64)
        for store in self._stores:
            for tensor in store:
                tensor[:, index.to(tensor.device)] = 0


def cache_dtype(model_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float32 on the CPU, which is attention's own type there; elsewhere the model's."""
    return torch.float32 if device.type == "cpu" else model_dtype


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, np.float32))  # the system hands out zero pages as they are touched
    return torch.zeros(shape, dtype=dtype, device=device)
