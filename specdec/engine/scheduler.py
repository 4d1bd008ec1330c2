"""Scheduler: who takes part in a round, and whose pages make room.

First come, first served. Running sequences decode every round and share `chunk_tokens` for prompts; waiting ones are
admitted while there is room for all their tokens. Where pages run out, the sequence that came last is preempted: it gives
its pages back and later computes them again, to the same bits.
"""

from collections import deque
from collections.abc import Iterable

from specdec.cache.pages import PageAllocator
from specdec.cache.prefix import PrefixIndex
from specdec.engine.sequence import Sequence, Turn


class Scheduler:
    """Owns the queues and the page books.

    Args:
        num_pages: pages of the K/V pool that sequences may hold.
        page_size: tokens per page.
        max_batch: sequences that run at once.
        chunk_tokens: prompt tokens per round, all sequences together.
        prefix_cache: keep the pages of what was computed, for prompts that begin alike.
    """

    def __init__(self, *, num_pages: int, page_size: int, max_batch: int, chunk_tokens: int, prefix_cache: bool) -> None:
        self.page_size = page_size
        self.num_preemptions = 0
        self._max_batch = max_batch
        self._chunk_tokens = chunk_tokens
        self._prefix = PrefixIndex(page_size) if prefix_cache else None
        self.pages = PageAllocator(num_pages, on_evict=self._prefix.forget if self._prefix is not None else None)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """A new sequence queues up."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """A sequence is over; its pages are given back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._give_back(sequence)

    def spoil(self, pages: Iterable[int]) -> None:
        """The pages hold values that must not be reused."""
        if self._prefix is not None:
            for page in pages:
                self._prefix.forget(page)

    def schedule(self) -> list[Turn]:
        """The turns of the next round, oldest sequence first; empty when there is nothing to do."""
        self._make_room()
        self._admit()
        turns, budget = [], self._chunk_tokens
        for sequence in self.running:
            chunk = min(sequence.num_missing, budget)
            budget -= chunk
            has_tree = chunk == sequence.num_missing
            if chunk or has_tree:
                turns.append(Turn(sequence, chunk, has_tree))
        return turns

    def grow(self, sequence: Sequence, num_positions: int) -> bool:
        """Hold pages for the positions [0, num_positions); False, and nothing changed, when there are too few."""
        count = -(-num_positions // self.page_size) - len(sequence.pages)
        if count <= 0:
            return True
        pages = self.pages.allocate(count, after=sequence.pages[-1] if sequence.pages else None)
        if pages is None:
            return False
        sequence.pages += pages.tolist()
        return True

    def commit(self, sequence: Sequence, num_cached: int) -> None:
        """The K and V of the positions [0, num_cached) are there for good; full pages become findable."""
        sequence.num_cached = num_cached
        if self._prefix is None:
            return
        while (len(sequence.digests) + 1) * self.page_size <= num_cached:
            index = len(sequence.digests)
            tokens = sequence.tokens[index * self.page_size : (index + 1) * self.page_size]
            parent = sequence.digests[-1] if sequence.digests else b""
            sequence.digests.append(self._prefix.add(parent, tokens, sequence.pages[index]))

    def check(self) -> None:
        """Raise AssertionError where the page books do not add up."""
        self.pages.check(sequence.pages for sequence in [*self.running, *self.waiting])
        assert all(not sequence.pages for sequence in self.waiting), "waiting sequences hold no pages"

    def _make_room(self) -> None:
        """A page for every running sequence's root, at the cost of those that came last."""
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            if self.grow(sequence, len(sequence.tokens)):
                index += 1
            else:
                self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self._give_back(sequence)
        self.waiting.appendleft(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        prefix = self._prefix
        self.pages.release(sequence.pages, keep=prefix.__contains__ if prefix is not None else lambda _page: False)
        sequence.pages, sequence.digests, sequence.num_cached = [], [], 0

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_batch:
            sequence = self.waiting[0]
            if not self._take_pages(sequence):
                return
            self.waiting.popleft()
            self.running.append(sequence)
            self.running.sort(key=lambda s: s.arrival)

    def _take_pages(self, sequence: Sequence) -> bool:
        """Pages for all of its tokens, known beginnings shared; one page is left to each that runs already."""
        known = self._prefix.match(sequence.tokens[:-1]) if self._prefix is not None else []
        self.pages.share(known)
        need = -(-len(sequence.tokens) // self.page_size) - len(known)
        sequence.pages = list(known)
        if self.pages.num_available < need + len(self.running) or not self.grow(sequence, len(sequence.tokens)):
            self._give_back(sequence)
            return False
        sequence.num_cached = len(known) * self.page_size
        if self._prefix is not None:
            sequence.digests = [self._prefix.digest(page) for page in known]
        if not sequence.admitted:
            sequence.num_prefix_hits = sequence.num_cached
        return True
