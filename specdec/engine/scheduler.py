"""Scheduler: who takes part in a round, and whose pages make room.

First come, first served. Running sequences decode every round and share `chunk_tokens` for prompts; waiting ones are
admitted while there is room for all their tokens. Where pages run out, the sequence that came last is preempted: it gives
its pages back and later computes them again, to the same bits. Sequences come and go while rounds are underway: where one
stands is known within bounds, and pages are given for the most that it may reach.
"""

from collections import deque
from collections.abc import Iterable

from specdec.cache.marks import MarkBook
from specdec.cache.pages import PageAllocator
from specdec.cache.prefix import PrefixIndex, salted_root
from specdec.engine.sequence import NO_SLOT, Sequence, Turn

_FEWEST_CHUNK_TOKENS = 16  # a prompt of 4,096 tokens is 256 rounds then; smaller ones hardly need less memory


class Scheduler:
    """Owns the queues, the slots and the page books.

    Args:
        num_pages: pages that sequences may hold.
        page_size: tokens per page.
        max_batch: sequences that run at once.
        chunk_tokens: prompt tokens per round, all sequences together.
        max_model_len: positions of a sequence.
        max_tree_rows: tree rows of a round, all sequences together.
        prefix_cache: keep the pages of what was computed, for prompts that begin alike.
        marks: states that prefixes need beside their pages; None where they need none.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_batch: int,
        chunk_tokens: int,
        max_model_len: int,
        max_tree_rows: int,
        prefix_cache: bool,
        marks: MarkBook | None = None,
    ) -> None:
        self.page_size = page_size
        self.num_preemptions = 0
        self.admitted: list[tuple[Sequence, int | None]] = []  # since the last look: with the mark of a known prefix
        self._new_pages: list[tuple[Sequence, int]] = []  # since they were taken last: whose, and from which page on
        self._max_batch = min(max_batch, max_tree_rows)
        self._chunk_tokens = chunk_tokens
        self._max_model_len = max_model_len
        self._prefix = PrefixIndex(page_size) if prefix_cache else None
        self._marks = marks if prefix_cache else None
        self.pages = PageAllocator(num_pages, on_evict=self._forget)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._suspects: set[Sequence] = set()
        self._slots = list(range(self._max_batch))[::-1]

    def add(self, sequence: Sequence) -> None:
        """A new sequence queues up."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """A sequence is over; its pages are given back. Rounds underway may still write to them, before anyone else does."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._suspects.discard(sequence)
        self._give_back(sequence)

    def set_back(self, sequences: Iterable[Sequence], suspect: bool) -> None:
        """What was computed of these running sequences is lost with the rounds underway; they compute it again before others.
        suspect: one by one, until each is acquitted."""
        for sequence in sorted(sequences, key=lambda s: s.arrival, reverse=True):
            sequence.suspect |= suspect
            if suspect:
                self._suspects.add(sequence)
            self._preempt(sequence)

    def acquit(self, sequence: Sequence) -> None:
        """A round of a suspect has not failed."""
        sequence.suspect = False
        self._suspects.discard(sequence)

    def shrink_chunks(self, rows: int) -> int:
        """A round with so many prompt rows was too large: how many there may be from now on; 0 where fewer make no sense."""
        fewer = min(self._chunk_tokens, rows) // 2
        if fewer < _FEWEST_CHUNK_TOKENS:
            return 0
        self._chunk_tokens = fewer
        return fewer

    def _forget(self, page: int) -> None:
        digest = self._prefix.forget(page) if self._prefix is not None else None
        if digest is not None and self._marks is not None:
            self._marks.forget(digest)

    def schedule(self, underway: bool) -> list[Turn] | None:
        """The turns of the next round, oldest sequence first; empty when there is nothing to do. None where it has to be known
        first how far the rounds underway got: pages have run out, or there is a suspect, which is alone in its rounds."""
        if self._suspects and underway:
            return None
        if not self._make_room(underway):
            return None
        self._admit()
        if self._suspects and (suspect := next((sequence for sequence in self.running if sequence.suspect), None)):
            return [turn._replace(most_nodes=min(turn.most_nodes, 1)) for turn in self._turns([suspect])]
        return self._turns(self.running)

    def _turns(self, sequences: Iterable[Sequence]) -> list[Turn]:
        """The parts that these running sequences have in the next round."""
        turns, budget = [], self._chunk_tokens
        for sequence in sequences:
            if sequence.host_work and sequence.trees_underway:
                continue  # the host's part begins with the outcome
            if sequence.num_enqueued >= sequence.prompt_end:
                if (most := self._most_nodes(sequence)) > 0:
                    turns.append(Turn(sequence, sequence.epoch, 0, 0, most))
            elif (turn := self._reading_turn(sequence, budget)) is not None:
                budget -= turn.chunk
                turns.append(turn)
        return turns

    def grow(self, sequence: Sequence, num_positions: int) -> bool:
        """Hold pages for the positions [0, num_positions); False, and nothing changed, when there are too few."""
        held = len(sequence.pages)
        count = -(-num_positions // self.page_size) - held
        if count <= 0:
            return True
        pages = self.pages.allocate(count, after=sequence.pages[-1] if sequence.pages else None)
        if pages is None:
            return False
        sequence.pages += pages.tolist()
        self._new_pages.append((sequence, held))
        return True

    def take_new_pages(self) -> tuple[list[int], list[int], list[int]]:
        """Pages that were given since this was asked last: slots, places in their tables, pages."""
        grown, self._new_pages = self._new_pages, []
        slots: list[int] = []
        indices: list[int] = []
        pages: list[int] = []
        for sequence, first in grown:
            if sequence.slot != NO_SLOT:
                new = sequence.pages[first:]
                slots += [sequence.slot] * len(new)
                indices += range(first, first + len(new))
                pages += new
        return slots, indices, pages

    def commit(self, sequence: Sequence, num_cached: int) -> None:
        """The caches of the positions [0, num_cached) are there for good; full pages become findable."""
        sequence.num_cached = num_cached
        if self._prefix is None or sequence.spoilt:
            return
        while (len(sequence.digests) + 1) * self.page_size <= num_cached:
            index = len(sequence.digests)
            tokens = sequence.tokens[index * self.page_size : (index + 1) * self.page_size]
            parent = sequence.digests[-1] if sequence.digests else salted_root(sequence.request.cache_salt)
            sequence.digests.append(self._prefix.add(parent, tokens, sequence.pages[index]))

    def settle_marks(self, turn: Turn, kept: bool) -> None:
        """The states that a turn was to keep are there, or will never be."""
        for position, mark in turn.marks:
            assert self._marks is not None, "turns keep states where there are marks"
            self._marks.settle(mark, turn.sequence.digests[position // self.page_size - 1] if kept else None)

    def check(self, underway: bool = False) -> None:
        """Raise AssertionError where the page books do not add up. underway: whether there are rounds whose outcome was not
        read."""
        self.pages.check(sequence.pages for sequence in [*self.running, *self.waiting])
        assert all(not sequence.pages for sequence in self.waiting), "waiting sequences hold no pages"
        held = [sequence.slot for sequence in self.running]
        assert sorted([*held, *self._slots]) == list(range(self._max_batch)), "every slot is free or held once"
        if self._marks is not None:
            self._marks.check(underway)

    def _most_nodes(self, sequence: Sequence) -> int:
        """Nodes that the next tree may have; each tree underway adds a token at least."""
        held = len(sequence.tokens)
        left = sequence.longest - held - sequence.trees_underway
        return min(left, self._max_model_len - held - sequence.ahead + 1, sequence.most_nodes)

    def _reading_turn(self, sequence: Sequence, budget: int) -> Turn | None:
        """The part in the next round of a sequence whose prompt is not read; None where it sits out. The round that ends the
        prompt brings its root alone: there are more shapes of such rounds than their drafts are worth recordings."""
        first = sequence.num_enqueued
        chunk = min(sequence.prompt_end - first, budget)
        if first + chunk < sequence.prompt_end or not sequence.wants_tokens:
            return self._marked(Turn(sequence, sequence.epoch, first, chunk, 0)) if chunk else None
        return self._marked(Turn(sequence, sequence.epoch, first, chunk, 1)) if self._most_nodes(sequence) > 0 else None

    def _marked(self, turn: Turn) -> Turn:
        """A prompt's state is kept at the end of its last full page, where the next turn of a chat goes on, and where it parts
        from an earlier prompt, since where two had something in common a third may have it too."""
        if self._marks is None or not turn.chunk:
            return turn
        ends = {turn.sequence.fork, turn.sequence.prompt_end // self.page_size * self.page_size}
        passed = sorted(end for end in ends if turn.first < end <= turn.first + turn.chunk)
        marks = [(end, mark) for end in passed if (mark := self._marks.take()) is not None]
        return turn._replace(marks=tuple(marks))

    def _make_room(self, underway: bool) -> bool:
        """A page for every running sequence's root, at the cost of those that came last. False where that has to wait."""
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            wanted = len(sequence.tokens) + sequence.ahead
            if wanted <= len(sequence.pages) * self.page_size or self.grow(sequence, wanted):
                index += 1
            elif underway:
                return False
            else:
                self._preempt(self.running[-1])
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self._give_back(sequence)
        self.waiting.appendleft(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        prefix = self._prefix
        self.pages.release(sequence.pages, keep=prefix.__contains__ if prefix is not None else lambda _page: False)
        sequence.pages, sequence.digests, sequence.num_cached, sequence.spoilt = [], [], 0, False
        if sequence.slot != NO_SLOT:
            self._slots.append(sequence.slot)
            sequence.slot = NO_SLOT
            sequence.epoch += 1

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_batch:
            sequence = self.waiting[0]
            if not self._take_pages(sequence):
                return
            self.waiting.popleft()
            sequence.slot = self._slots.pop()
            sequence.num_enqueued, sequence.prompt_end = sequence.num_cached, len(sequence.tokens) - 1
            sequence.ahead = sequence.trees_underway = 0
            self.running.append(sequence)
            self.running.sort(key=lambda s: s.arrival)

    def _take_pages(self, sequence: Sequence) -> bool:
        """Pages for all of its tokens, known beginnings shared; one page is left to each that runs already."""
        known: list[int] = []
        if self._prefix is not None and not sequence.reads_whole_prompt:
            known = self._prefix.match(sequence.tokens[:-1], salted_root(sequence.request.cache_salt))
        mark = None
        if self._prefix is not None and self._marks is not None:
            sequence.fork = len(known) * self.page_size
            count, mark = self._marks.longest([self._prefix.digest(page) for page in known])
            known = known[:count]
        self.pages.share(known)
        need = -(-len(sequence.tokens) // self.page_size) - len(known)
        sequence.pages = list(known)
        announced = len(self._new_pages)
        if self.pages.num_available < need + len(self.running) or not self.grow(sequence, len(sequence.tokens)):
            self._give_back(sequence)
            return False
        del self._new_pages[announced:]  # they are told when it enters its slot
        sequence.num_cached = len(known) * self.page_size
        if self._prefix is not None:
            sequence.digests = [self._prefix.digest(page) for page in known]
        if not sequence.admitted:
            sequence.num_prefix_hits = sequence.num_cached
        self.admitted.append((sequence, mark))
        return True
