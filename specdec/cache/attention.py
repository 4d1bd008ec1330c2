"""Keys and values of attention layers, in pages.

Legend of shape suffixes: R rows, H query heads, K key heads, D head size, C queries, keys and values together ((H + 2 K) * D).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from specdec.cache.kinds import CacheRoom
from specdec.cache.rows import Rows, Runs
from specdec.kernels.entry_move import move_accepted
from specdec.kernels.linear import uses_triton
from specdec.kernels.tree_attention import tree_attention
from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk import Accepted
from specdec.models.base import AttentionSpec, CacheSpec, Heads
from specdec.models.layers.rope import Rotation


class AttentionCache:
    """See `specdec.cache.kinds.CacheKind`. Accepted rows off the spine are moved; a prefix needs nothing but its pages.

    Layers of one shape share a tensor `[2 * layers, pages, kv heads, page size, head_dim]`, keys and values in turn, so that a
    move is one operation for all of them. A spare page behind all others holds what nobody reads.
    """

    has_state: ClassVar[bool] = False

    def __init__(self, specs: Sequence[CacheSpec], room: CacheRoom) -> None:
        self._specs = [cast(AttentionSpec, spec) for spec in specs]
        self._room = room
        shapes: dict[tuple[int, int], list[int]] = {}
        for layer, spec in enumerate(self._specs):
            shapes.setdefault((spec.num_kv_heads, spec.head_dim), []).append(layer)
        self._stores: list[Tensor] = []
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        for (num_kv_heads, head_dim), layers in shapes.items():
            shape = (2 * len(layers), room.num_pages + 1, num_kv_heads, room.page_size, head_dim)
            store = _zeros(shape, room.dtype, room.device)
            self._stores.append(store)
            self._layers |= {layer: (store[2 * index], store[2 * index + 1]) for index, layer in enumerate(layers)}

    @staticmethod
    def page_bytes(spec: CacheSpec, page_size: int, dtype: torch.dtype) -> int:
        """See `CacheKind.page_bytes`."""
        kept = cast(AttentionSpec, spec)
        return 2 * kept.num_kv_heads * kept.head_dim * page_size * dtype.itemsize

    @staticmethod
    def slot_bytes(spec: CacheSpec, longest_path: int, dtype: torch.dtype) -> int:
        """See `CacheKind.slot_bytes`."""
        del spec, longest_path, dtype
        return 0

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, `[pages, kv heads, page size, head_dim]` each."""
        return self._layers[index]

    def view(self, index: int, rows: Rows) -> "AttentionView":
        """See `CacheKind.view`."""
        keys, values = self._layers[index]
        return AttentionView(keys, values, rows, self._specs[index].window, self._room.num_pages)

    def begin(self, rows: Rows) -> None:
        """Nothing: each layer writes its own rows before it reads."""

    def finish(self, rows: Rows) -> None:
        """Nothing."""

    def move(self, rows: Rows, trees: TreeRows, accepted: Accepted, nodes_M: Tensor) -> None:
        """See `CacheKind.move`."""
        del rows
        for store in self._stores:
            move_accepted(store, trees, accepted, nodes_M)

    def enter(self, slot: int, position: int, mark: int | None) -> None:
        """Nothing: pages are all that a prefix has."""


@dataclass(frozen=True, slots=True)
class AttentionView:
    """One attention layer in one round. keys, values: see `AttentionCache.layer`."""

    keys: Tensor
    values: Tensor
    rows: Rows
    window: int | None
    spare_page: int

    def attend(self, qkv_RC: Tensor, heads: Heads) -> Tensor:
        """Rotate the heads, keep keys and values, and let each row attend over its own history, itself included. Scores are
        scaled by D ** -0.5.

        Args:
            qkv_RC: contiguous.
            heads: what makes heads of it.

        Returns:
            [R, H * D], contiguous.
        """
        split = self._split_on_device if uses_triton(qkv_RC.device) else self._split
        q_RHD = split(qkv_RC, heads)
        scale = heads.head_dim**-0.5
        out_RHD = tree_attention(q_RHD, self.keys, self.values, self.rows.attention, scale=scale, window=self.window)
        return out_RHD.view(len(q_RHD), -1)

    def _split(self, qkv_RC: Tensor, heads: Heads) -> Tensor:
        """Queries [R, H, D]; keys and values go to the pages, run by run: for few rows an indexed write costs more than all
        the rest."""
        rows, kept = self.rows, self.rows.kept
        rotation = cast(Rotation | None, kept.get(heads.rope))
        if rotation is None:
            rotation = heads.rope.rotation(rows.positions_R)
            kept[heads.rope] = rotation
        q_RHD, k_RKD, v_RKD = heads.split(qkv_RC, rotation)
        runs = cast(Runs | None, kept.get(Runs))
        if runs is None:
            runs = Runs.of(rows.entries_R, self.keys.shape[2], self.spare_page)
            kept[Runs] = runs
        for first, end, page, offset in runs.runs:
            place = slice(offset, offset + end - first)
            self.keys[page, :, place] = k_RKD[first:end].transpose(0, 1)
            self.values[page, :, place] = v_RKD[first:end].transpose(0, 1)
        return q_RHD

    def _split_on_device(self, qkv_RC: Tensor, heads: Heads) -> Tensor:
        from specdec.kernels.tree_attention.heads import heads_triton

        norm = heads.per_head_norm
        cos, sin = heads.rope.table
        return heads_triton(
            heads.packed(qkv_RC),
            norm.of_query if norm else None,
            norm.of_key if norm else None,
            cos,
            sin,
            positions_R=self.rows.positions_R,
            entries_R=self.rows.entries_R,
            k_pages=self.keys,
            v_pages=self.values,
            eps=norm.eps if norm else 0.0,
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, np.float32))  # the system hands out zero pages as they are touched
    return torch.zeros(shape, dtype=dtype, device=device)
