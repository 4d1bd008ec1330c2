"""All caches of an engine as one: every layer answers through its kind, drafters' behind the target's."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch

from specdec.cache import kinds
from specdec.cache.attention import AttentionCache
from specdec.cache.kinds import CacheRoom, Caches, cache_dtype, has_state, page_bytes, slot_bytes
from specdec.models.base import AttentionSpec, CacheSpec

CPU = torch.device("cpu")
ROOM = CacheRoom(num_pages=4, page_size=16, num_slots=2, num_marks=3, longest_path=8, dtype=torch.float32, device=CPU)
SPECS = (
    AttentionSpec(num_kv_heads=2, head_dim=8),
    AttentionSpec(num_kv_heads=1, head_dim=4),
    AttentionSpec(num_kv_heads=2, head_dim=8, window=5),
)


class StateSpec(CacheSpec):
    """Of a layer that keeps a state."""


class StateCache:
    """A kind that writes down what it hears."""

    has_state: ClassVar[bool] = True
    made: ClassVar[list["StateCache"]] = []

    def __init__(self, specs: Sequence[CacheSpec], room: CacheRoom) -> None:
        self.specs, self.heard = specs, list[tuple[Any, ...]]()
        StateCache.made.append(self)

    @staticmethod
    def page_bytes(spec: CacheSpec, page_size: int, dtype: torch.dtype) -> int:
        return page_size

    @staticmethod
    def slot_bytes(spec: CacheSpec, longest_path: int, dtype: torch.dtype) -> int:
        return 1000 + longest_path * dtype.itemsize

    def view(self, index: int, rows: Any) -> tuple[int, Any]:
        return index, rows

    def begin(self, rows: Any) -> None:
        self.heard.append(("begin", rows))

    def finish(self, rows: Any) -> None:
        self.heard.append(("finish", rows))

    def move(self, *arguments: Any) -> None:
        self.heard.append(("move", *arguments))

    def enter(self, *arguments: Any) -> None:
        self.heard.append(("enter", *arguments))


@pytest.fixture
def two_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of a second kind beside those of attention."""
    known: Any = {AttentionSpec: AttentionCache, StateSpec: StateCache}
    monkeypatch.setattr(kinds, "kind_of", lambda spec: known[type(spec)])


def test_bytes_add_up_over_layers() -> None:
    assert page_bytes(SPECS, 16, torch.float32) == 2 * (16 + 4 + 16) * 16 * 4
    assert page_bytes(SPECS, 16, torch.bfloat16) == 2 * (16 + 4 + 16) * 16 * 2
    assert slot_bytes(SPECS, 8, torch.float32) == 0


def test_the_spare_entry_lies_behind_all_pages() -> None:
    assert ROOM.spare_entry == 4 * 16
    keys, values = AttentionCache(SPECS, ROOM).layer(0)
    assert keys.shape == values.shape == (5, 2, 16, 8)


def test_the_cpu_keeps_float32_and_a_gpu_what_the_model_has() -> None:
    assert cache_dtype(torch.bfloat16, CPU) == torch.float32
    assert cache_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16


def test_every_layer_finds_its_kind_whatever_stands_between(two_kinds: None) -> None:
    caches = Caches([StateSpec(), SPECS[0], StateSpec(), SPECS[1], StateSpec()], ROOM)
    rows: Any = "rows"
    assert [caches.view(layer, rows) for layer in (0, 2, 4)] == [(0, rows), (1, rows), (2, rows)]
    assert caches.view(1, rows).keys.shape == (5, 2, 16, 8)
    assert caches.view(3, rows).keys.shape == (5, 1, 16, 4)
    assert has_state([SPECS[0], StateSpec()])
    assert not has_state(SPECS)
    assert page_bytes([StateSpec(), SPECS[0]], 16, torch.float32) == 16 + 2 * 16 * 16 * 4
    assert slot_bytes([StateSpec(), SPECS[0], StateSpec()], 8, torch.bfloat16) == 2032


def test_every_kind_hears_of_every_step(two_kinds: None) -> None:
    caches, rows = Caches([StateSpec(), SPECS[0]], ROOM), object()
    hears: Any = caches
    hears.begin(rows)
    hears.finish(rows)
    hears.enter(1, 32, 2)
    assert StateCache.made[-1].heard == [("begin", rows), ("finish", rows), ("enter", 1, 32, 2)]
