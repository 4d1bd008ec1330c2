"""States of recurrent layers: one for each slot, moved on by every token; and of the last tokens what steps read of them.

What a round accepts is not taken into the state at its end. It waits in a ring, by position, until the slot's next round takes
it in: so a state is read and written once a round, and a round that turns out void has changed nothing but what lies behind its
own root. See `specdec.kernels.state_scan`.

Legend of shape suffixes: L layers, S slots (the spare one last), K marks (a spare one last), B room of a ring, J taps, W
numbers kept of a row, R rows, M members of a round, T tree rows, D depths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.cache.kinds import CacheRoom
from specdec.cache.rows import Rows
from specdec.kernels.linear import uses_triton
from specdec.kernels.state_scan import StateScan, StateStore, StateTables
from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk import Accepted
from specdec.models.base import CacheSpec, RecurrentSpec


class RecurrentCache:
    """See `specdec.cache.kinds.CacheKind`. A prefix can be reused where its state was kept as a mark."""

    has_state: ClassVar[bool] = True

    def __init__(self, specs: Sequence[CacheSpec], room: CacheRoom) -> None:
        self._room = room
        alike: dict[RecurrentSpec, list[int]] = {}
        for layer, spec in enumerate(specs):
            alike.setdefault(cast(RecurrentSpec, spec), []).append(layer)
        self._groups = [_Group.of(spec, len(layers), room) for spec, layers in alike.items()]
        self._places = {
            layer: (group, index)
            for group, layers in zip(self._groups, alike.values(), strict=True)
            for index, layer in enumerate(layers)
        }
        # positions [0, folded) are in a slot's states
        self._folded_S = torch.zeros(room.num_slots + 1, dtype=torch.int64, device=room.device)

    @staticmethod
    def page_bytes(spec: CacheSpec, page_size: int, dtype: torch.dtype) -> int:
        """See `CacheKind.page_bytes`."""
        del spec, page_size, dtype
        return 0

    @staticmethod
    def slot_bytes(spec: CacheSpec, longest_path: int, dtype: torch.dtype) -> int:
        """See `CacheKind.slot_bytes`."""
        kept = cast(RecurrentSpec, spec)
        rows = _ring_rows(kept, longest_path) if longest_path else kept.taps - 1
        return math.prod(kept.state_shape) * torch.float32.itemsize + rows * kept.row_width * dtype.itemsize

    def view(self, index: int, rows: Rows) -> "RecurrentView":
        """See `CacheKind.view`. Rows that no round began, as those of a draft, have no view: a state cannot be taken back."""
        group, layer = self._places[index]
        tables = rows.kept.get(group)
        assert isinstance(tables, StateTables), "a recurrent layer computes the rows of rounds"
        return RecurrentView(group.store(layer), tables, rows, (group, layer))

    def begin(self, rows: Rows) -> None:
        """See `CacheKind.begin`."""
        folded_M = self._folded_S[rows.slots_M]
        waiting = _most_waiting(rows.attention.starts_M - folded_M, self._room.longest_path)
        for group in self._groups:
            rows.kept[group] = StateTables(
                states_M=rows.slots_M,
                folded_M=folded_M,
                starts_M=rows.attention.starts_M,
                bases_M=rows.attention.bases_M,
                sequences_R=rows.attention.sequences_R,
                positions_R=rows.attention.positions_R,
                parents_T=rows.parents_T,
                num_chunk=rows.num_chunk,
                num_nodes=_num_nodes(rows),
                waiting=waiting,
                taps=group.spec.taps,
                marks_MX=rows.marks_MX,
                kept_MX=rows.mark_slots_MX,
            )

    def finish(self, rows: Rows) -> None:
        """See `CacheKind.finish`."""
        self._folded_S[rows.slots_M] = rows.attention.bases_M

    def move(self, rows: Rows, trees: TreeRows, accepted: Accepted, nodes_M: Tensor) -> None:
        """See `CacheKind.move`: accepted rows below the roots join the rings."""
        depths_D = torch.arange(1, accepted.rows_MD.shape[1], device=nodes_M.device)
        kept_MD = (depths_D <= accepted.num_M[:, None]) & (accepted.sound_M & (nodes_M > 0))[:, None]
        slots_MD = torch.where(kept_MD, rows.slots_M[:, None], self._room.num_slots)
        at_MD = trees.bases_M[:, None] + depths_D
        for group, layer in self._places.values():
            rows_TW = cast(Tensor, rows.kept[group, layer])
            group.recent_LSBW[layer, slots_MD, at_MD % group.recent_LSBW.shape[2]] = rows_TW[accepted.rows_MD[:, 1:]]

    def enter(self, slot: int, position: int, mark: int | None) -> None:
        """See `CacheKind.enter`."""
        self._folded_S[slot] = position
        for group in self._groups:
            group.enter(slot, position, mark)


@dataclass(frozen=True, eq=False, slots=True)
class _Group:
    """Layers of one shape, in one tensor each; see `StateStore`."""

    spec: RecurrentSpec
    states_LS: Tensor
    recent_LSBW: Tensor
    kept_LK: Tensor
    kept_rows_LKJW: Tensor

    @staticmethod
    def of(spec: RecurrentSpec, layers: int, room: CacheRoom) -> "_Group":
        slots, marks = room.num_slots + 1, room.num_marks + 1

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(layers, *shape, dtype=dtype, device=room.device)

        return _Group(
            spec,
            zeros(slots, *spec.state_shape, dtype=torch.float32),
            zeros(slots, _ring_rows(spec, room.longest_path), spec.row_width, dtype=room.dtype),
            zeros(marks, *spec.state_shape, dtype=torch.float32),
            zeros(marks, spec.taps - 1, spec.row_width, dtype=room.dtype),
        )

    def store(self, layer: int) -> StateStore:
        """What one layer keeps."""
        return StateStore(self.states_LS[layer], self.recent_LSBW[layer], self.kept_LK[layer], self.kept_rows_LKJW[layer])

    def enter(self, slot: int, position: int, mark: int | None) -> None:
        """A slot's states are those of a mark, or zero."""
        if mark is None:
            self.states_LS[:, slot] = 0
            return
        self.states_LS[:, slot] = self.kept_LK[:, mark]
        before_J = torch.arange(position + 1 - self.spec.taps, position, device=self.states_LS.device)
        self.recent_LSBW[:, slot, before_J % self.recent_LSBW.shape[2]] = self.kept_rows_LKJW[:, mark]


@dataclass(frozen=True, slots=True)
class RecurrentView:
    """One recurrent layer in one round."""

    store: StateStore
    tables: StateTables
    rows: Rows
    key: tuple[_Group, int]

    def scan(self, rows_RW: Tensor, scan: StateScan) -> Tensor:
        """Let each row step from the state behind the row before it, and keep what has to be kept.

        Args:
            rows_RW: all that steps read of each row; rounded to what the cache keeps.
            scan: the layer's recurrence.

        Returns:
            float32 [R, O]; padding rows are zero.
        """
        num_rows = self.rows.num_rows
        kept_RW = rows_RW[:num_rows].to(self.store.recent_SBW.dtype)
        if self.tables.num_nodes > 1:  # of a chunk no more than its trees is held on to
            chunk = self.rows.num_chunk
            self.rows.kept[self.key] = kept_RW[chunk:].clone() if chunk else kept_RW
        out_RO = scan(kept_RW, self.store, self.tables)
        return F.pad(out_RO, (0, 0, 0, len(rows_RW) - num_rows)) if len(rows_RW) > num_rows else out_RO


def _ring_rows(spec: RecurrentSpec, longest_path: int) -> int:
    """What one round accepts, what stands before it, and one more: so that where nothing but trees is computed, no root is
    written over a row that the same round still reads."""
    return longest_path + spec.taps


def _num_nodes(rows: Rows) -> int:
    """Tree rows of a member at most."""
    return rows.attention.ancestor_entries_TD.shape[1]


def _most_waiting(waiting_M: Tensor, longest_path: int) -> int:
    """Steps that take in what waits: on a CPU as many as there are; a recording has to have as many as there may be."""
    return longest_path if uses_triton(waiting_M.device) else min(max(int(waiting_M.max()), 0), longest_path)
