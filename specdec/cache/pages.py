"""PageAllocator: which page of the K/V cache belongs to whom."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from specdec.arrays import IntArray


class PageAllocator:
    """Reference-counted pages. A page is free, held (by one or more sequences), or idle: unheld but worth keeping.

    Idle pages hold the prefix cache; the one unheld for longest is given away when no page is free.

    Args:
        num_pages: pages in the pool.
        on_evict: told of every idle page that is given away.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] | None = None) -> None:
        self.num_pages = num_pages
        self._on_evict = on_evict or (lambda _page: None)
        self._holders = np.zeros(num_pages, np.int64)
        self._free = np.ones(num_pages, np.bool_)
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_held(self) -> int:
        """Pages that sequences hold."""
        return self.num_pages - self.num_available

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could give: free and idle."""
        return int(self._free.sum()) + len(self._idle)

    def allocate(self, count: int, after: int | None = None) -> IntArray | None:
        """Hold `count` pages, or none at all (None) when there are fewer.

        Neighbouring pages are preferred, since the CPU path reads a run of them without a copy: page `after` + 1 on when
        growing, else the middle of the longest free run, which leaves room to grow.
        """
        if count > self.num_available:
            return None
        while int(self._free.sum()) < count:
            page, _ = self._idle.popitem(last=False)
            self._on_evict(page)
            self._free[page] = True
        if count == 0:
            return np.zeros(0, np.int64)
        pages = self._choose(count, after)
        self._free[pages] = False
        self._holders[pages] = 1
        return pages

    def _choose(self, count: int, after: int | None) -> IntArray:
        if after is not None:
            run = np.arange(after + 1, after + 1 + count)
            if run[-1] < self.num_pages and self._free[run].all():
                return run
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self._free, [False]]).astype(np.int8)))
        starts, ends = edges[::2], edges[1::2]
        longest = int((ends - starts).argmax())
        if ends[longest] - starts[longest] < count:
            return np.flatnonzero(self._free)[:count]
        start = starts[longest] + (ends[longest] - starts[longest] - count) // 2 * (starts[longest] > 0)
        return np.arange(start, start + count)

    def share(self, pages: Sequence[int]) -> None:
        """One more holder for each of `pages`, which are held or idle."""
        for page in pages:
            assert not self._free[page], f"page {page} is free and cannot be shared"
            self._idle.pop(page, None)
            self._holders[page] += 1

    def release(self, pages: Iterable[int], keep: Callable[[int], bool] = lambda _page: False) -> None:
        """One holder less for each of `pages`; unheld ones stay idle where `keep` says so. The last given is evicted first."""
        for page in reversed(list(pages)):
            assert self._holders[page] > 0, f"page {page} is not held"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if keep(page):
                    self._idle[page] = None
                else:
                    self._free[page] = True

    def check(self, held: Iterable[Iterable[int]]) -> None:
        """Raise AssertionError unless the books agree with what each holder says it holds."""
        counted = np.zeros(self.num_pages, np.int64)
        for pages in held:
            for page in pages:
                counted[page] += 1
        assert (counted == self._holders).all(), "every page has as many holders as the books say"
        idle = np.zeros(self.num_pages, np.bool_)
        idle[list(self._idle)] = True
        states = self._free.astype(int) + idle + (self._holders > 0)
        assert (states == 1).all(), "every page is either free, idle or held"
