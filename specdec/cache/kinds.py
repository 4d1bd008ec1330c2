"""What every kind of cache answers, and all caches of an engine as one.

A kind keeps what some layers need between rounds. Whoever plans memory, pages or prefixes asks these questions and knows no
kind by name: how many bytes (of a page, of a slot); where a round's rows go (`view`); what to do when a path is accepted
(`move`); whether a known prefix can be reused as it is (`has_state`); how to keep a state and bring it back (marks, `enter`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from specdec.cache.registry import kind_of
from specdec.cache.rows import Rows
from specdec.kernels.tree_rows import TreeRows
from specdec.kernels.tree_walk import Accepted
from specdec.models.base import CacheSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRoom:
    """How much the caches of an engine hold.

    num_pages: of page_size positions, scratch included; one more, the spare page, holds what nobody reads. num_slots: of
    sequences, one more is the spare slot. num_marks: states that can be kept for prefixes. longest_path: rows of a tree that a
    round keeps at most. dtype: of keys and values, and of whatever else is kept of single rows.
    """

    num_pages: int
    page_size: int
    num_slots: int
    num_marks: int
    longest_path: int
    dtype: torch.dtype
    device: torch.device

    @property
    def spare_entry(self) -> int:
        return self.num_pages * self.page_size


class CacheKind(Protocol):
    """The caches of all layers of one kind. Methods that take tensors run inside a round, on the device, and wait for
    nothing."""

    has_state: ClassVar[bool]  # whether a prefix needs a kept state beside its pages

    def __init__(self, specs: Sequence[CacheSpec], room: CacheRoom) -> None: ...

    @staticmethod
    def page_bytes(spec: CacheSpec, page_size: int, dtype: torch.dtype) -> int:
        """Of one layer in one page."""
        ...

    @staticmethod
    def slot_bytes(spec: CacheSpec, longest_path: int, dtype: torch.dtype) -> int:
        """Of one layer for one sequence; for one kept state where longest_path is 0. See `CacheRoom`."""
        ...

    def view(self, index: int, rows: Rows) -> Any:
        """What the layer `index` (of those that this kind was made for) does with a round's rows."""
        ...

    def begin(self, rows: Rows) -> None:
        """A round's rows are known; before any layer runs."""
        ...

    def finish(self, rows: Rows) -> None:
        """All layers have run, those of drafters too, and the round is over."""
        ...

    def move(self, rows: Rows, trees: TreeRows, accepted: Accepted, nodes_M: Tensor) -> None:
        """Paths were accepted, whose rows may lie elsewhere than their positions; see `specdec.kernels.entry_move`. Where there
        were drafts, before `finish`."""
        ...

    def enter(self, slot: int, position: int, mark: int | None) -> None:
        """A sequence takes a slot; its first `position` positions are known, their state kept as `mark`. Where nobody looks at
        values, they count as known without one."""
        ...


class Caches:
    """What all layers keep: the target's, and behind them those of drafters.

    Args:
        specs: one per layer.
        room: how much.
    """

    def __init__(self, specs: Sequence[CacheSpec], room: CacheRoom) -> None:
        self.room = room
        groups: dict[type[CacheKind], list[int]] = {}
        for layer, spec in enumerate(specs):
            groups.setdefault(kind_of(spec), []).append(layer)
        self._kinds = [kind([specs[layer] for layer in layers], room) for kind, layers in groups.items()]
        self._place = {
            layer: (kind, index)
            for kind, layers in zip(self._kinds, groups.values(), strict=True)
            for index, layer in enumerate(layers)
        }

    def view(self, layer: int, rows: Rows) -> Any:
        """See `CacheKind.view`."""
        kind, index = self._place[layer]
        return kind.view(index, rows)

    def begin(self, rows: Rows) -> None:
        """See `CacheKind.begin`."""
        for kind in self._kinds:
            kind.begin(rows)

    def finish(self, rows: Rows) -> None:
        """See `CacheKind.finish`."""
        for kind in self._kinds:
            kind.finish(rows)

    def move(self, rows: Rows, trees: TreeRows, accepted: Accepted, nodes_M: Tensor) -> None:
        """See `CacheKind.move`."""
        for kind in self._kinds:
            kind.move(rows, trees, accepted, nodes_M)

    def enter(self, slot: int, position: int, mark: int | None) -> None:
        """See `CacheKind.enter`."""
        for kind in self._kinds:
            kind.enter(slot, position, mark)


def page_bytes(specs: Sequence[CacheSpec], page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    return sum(kind_of(spec).page_bytes(spec, page_size, dtype) for spec in specs)


def slot_bytes(specs: Sequence[CacheSpec], longest_path: int, dtype: torch.dtype) -> int:
    """Bytes of one sequence beside its pages, or where longest_path is 0 of one kept state, over all layers."""
    return sum(kind_of(spec).slot_bytes(spec, longest_path, dtype) for spec in specs)


def has_state(specs: Sequence[CacheSpec]) -> bool:
    """Whether some layer keeps what a position moves on for good, so that a prefix can be reused only where it was kept."""
    return any(kind_of(spec).has_state for spec in specs)


def cache_dtype(model_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of keys and values: float32 on the CPU, which is attention's own type there; elsewhere the model's."""
    return torch.float32 if device.type == "cpu" else model_dtype
