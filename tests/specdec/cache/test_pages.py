"""Who holds which page: the books balance, runs stay together, the oldest idle page goes first."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.cache.pages import PageAllocator

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
    with pytest.raises(AssertionError, match="cannot be shared"):
        allocator.share([3])


def test_growth_continues_the_run_and_newcomers_leave_room() -> None:
    allocator = PageAllocator(64)
    first = allocator.allocate(3)
    second = allocator.allocate(3)
    assert first is not None
    assert second is not None
    grown = allocator.allocate(2, after=int(first[-1]))
    assert grown is not None
    assert np.diff(np.concatenate([first, grown])).tolist() == [1, 1, 1, 1]


def test_scattered_pages_serve_where_no_run_is_long_enough() -> None:
    allocator = PageAllocator(6)
    pages = allocator.allocate(6)
    assert pages is not None
    allocator.release([0, 2, 4])
    found = allocator.allocate(2)
    assert found is not None
    assert set(found.tolist()) <= {0, 2, 4}


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
