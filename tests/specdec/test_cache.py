"""Page books, the prefix index, and the pool's commit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.cache.attention import KVPool
from specdec.cache.pages import PageAllocator
from specdec.cache.prefix import PrefixIndex
from specdec.models.base import CacheSpec

SPECS = (CacheSpec(num_kv_heads=2, head_dim=8), CacheSpec(num_kv_heads=1, head_dim=4), CacheSpec(num_kv_heads=2, head_dim=8))

KEEPS: dict[str, Callable[[int], bool]] = {"keep": lambda _page: True, "drop": lambda _page: False}


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "drop", "keep"]), st.integers(0, 7)), max_size=60))
@settings(max_examples=150, deadline=None)
def test_the_books_balance_after_anything(steps: list[tuple[str, int]]) -> None:
    evicted: list[int] = []
    allocator = PageAllocator(12, on_evict=evicted.append)
    held: list[list[int]] = []
    for action, number in steps:
        if action == "take":
            before = allocator.num_available
            pages = allocator.allocate(number, after=held[-1][-1] if held and held[-1] else None)
            assert (pages is None) == (number > before)
            if pages is not None:
                assert len(set(pages.tolist())) == number
                held.append(pages.tolist())
        elif held and action == "share":
            shared = list(held[number % len(held)])
            allocator.share(shared)
            held.append(shared)
        elif held:
            allocator.release(held.pop(number % len(held)), keep=KEEPS[action])
        allocator.check(held)
        assert allocator.num_held == len({page for pages in held for page in pages})


def test_the_books_notice_a_page_held_twice() -> None:
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    assert pages is not None
    with pytest.raises(AssertionError, match="as many holders"):
        allocator.check([pages.tolist(), pages.tolist()])
    with pytest.raises(AssertionError, match="not held"):
        allocator.release([3])


def test_growth_continues_the_run_and_newcomers_leave_room() -> None:
    allocator = PageAllocator(64)
    first = allocator.allocate(3)
    second = allocator.allocate(3)
    assert first is not None
    assert second is not None
    grown = allocator.allocate(2, after=int(first[-1]))
    assert grown is not None
    assert np.diff(np.concatenate([first, grown])).tolist() == [1, 1, 1, 1]


def test_the_page_idle_for_longest_is_evicted_first() -> None:
    evicted: list[int] = []
    allocator = PageAllocator(3, on_evict=evicted.append)
    pages = allocator.allocate(3)
    assert pages is not None
    allocator.release(pages.tolist(), keep=lambda _page: True)
    allocator.allocate(1)
    assert evicted == [2], "the end of a prompt goes before its beginning"
    allocator.share([0])
    allocator.allocate(1)
    assert evicted == [2, 1]


def test_prefix_matches_whole_pages_of_the_same_history_only() -> None:
    index = PrefixIndex(page_size=4)
    tokens = list(range(12))
    digest = b""
    for number, page in enumerate((5, 9, 7)):
        digest = index.add(digest, tokens[number * 4 : number * 4 + 4], page)
    assert index.match(tokens) == [5, 9, 7]
    assert index.match(tokens[:11]) == [5, 9]
    assert index.match([99, *tokens[1:]]) == []
    assert index.match(tokens[4:8]) == [], "the same tokens elsewhere have another history"
    index.forget(9)
    assert index.match(tokens) == [5]
    assert 7 in index
    assert 9 not in index


def test_a_second_page_of_the_same_tokens_does_not_replace_the_first() -> None:
    index = PrefixIndex(page_size=2)
    assert index.add(b"", [1, 2], 0) == index.add(b"", [1, 2], 1)
    index.forget(1)
    assert index.match([1, 2]) == [0]


def test_pool_moves_slots_in_every_layer() -> None:
    pool = KVPool(SPECS, num_pages=4, page_size=16, dtype=torch.float32, device=torch.device("cpu"))
    slots = torch.tensor([17, 40])
    for layer, spec in enumerate(SPECS):
        k = torch.randn(2, spec.num_kv_heads, spec.head_dim)
        pool.write(layer, slots // 16, slots % 16, k, -k)
    pool.move(slots, torch.tensor([2, 3]))
    for layer in range(len(SPECS)):
        keys, values = pool.layer(layer)
        assert torch.equal(keys[0, :, 2], keys[1, :, 1])
        assert torch.equal(values[0, :, 3], values[2, :, 8])
        assert keys[0, :, 2].any()
    pool.scrub([0])
    assert not any(pool.layer(layer)[0][0].any() for layer in range(len(SPECS)))


def test_page_bytes_counts_keys_and_values_of_all_layers() -> None:
    assert KVPool.page_bytes(SPECS, 16, torch.float32) == 2 * (16 + 4 + 16) * 16 * 4
