"""Which recording a round runs as, where its own shape has none: a larger one stands in for it.

To record a shape takes as long as some thirty rounds of a small model, and under traffic members, prompts, trees and pages have
hundreds of shapes together. So what comes first is recorded with room around it, for others to run as too. Shapes that are
wanted often get recordings of their own, as far as a small share of the time allows. No bit depends on any of this.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator

from specdec.kernels.tree_select import MAX_NODES
from specdec.round.graphs import Graphs
from specdec.round.plan import CHUNK_BUCKETS, MOST_TREE_ROWS, RoundShape, power_of_two

# The next two bound what recordings cost, 15 ms each for SmolLM2 on an H200; they are not fitted on anything. The four behind
# them: chosen in a simulation of SmolLM2's traffic at 8 in flight, so that a second run meets hardly a shape without a stand-in
_WANTS = 64  # rounds that a stand-in ran, before a shape may have its own recording
_SHARE = 0.02  # of the time may go into such recordings
_ROOM = 2  # a stand-in has at most so many times the rows or members
_PAGES = 4  # ... and pages
_FEWEST_PAGES = 16
_BUSHY = 8  # a tree may have so many times the nodes of the average one
_USUAL_CHUNKS = (0, 128, 256)  # prompt rows that are recorded at start-up: those of the bench suite's prompts, one at a time
_BESIDE_PROMPTS = 4  # rows of each sequence there, at most
_MOST_WANTED = 4096  # shapes that are counted


class StandIns:
    """Args:
    graphs: the recordings.
    most_members, most_pages: of any round.
    most_chunk: prompt rows of any round that is recorded.
    """

    def __init__(
        self,
        graphs: Graphs,
        *,
        most_members: int,
        most_pages: int,
        most_chunk: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._graphs = graphs
        self._most_members, self._most_pages, self._most_chunk = most_members, most_pages, most_chunk
        self._clock = clock
        self._started = clock()
        self._spent = 0.0  # seconds for recordings that had a stand-in
        self._wants: Counter[RoundShape] = Counter()
        self._larger: dict[RoundShape, list[RoundShape]] = {}
        self._version = -1  # of the recordings that `_larger` knows

    def choose(self, wanted: RoundShape, fits: Callable[[RoundShape], bool]) -> RoundShape:
        """The shape to run a round as.

        Args:
            wanted: the smallest that holds it.
            fits: whether a larger one does: it has more rows for the trees that are there, and a tree may have too many then.
        """
        if wanted in self._graphs or not self._graphs.records(wanted):
            return wanted
        stand_in = next(filter(fits, self._candidates(wanted)), None)
        if stand_in is None:
            roomy = self._roomy(wanted)
            return roomy if self._graphs.records(roomy) and fits(roomy) else wanted
        self._wants[wanted] += 1
        if len(self._wants) > _MOST_WANTED:
            self._wants.clear()
        return wanted if self._wants[wanted] > _WANTS and self._affords() else stand_in

    def usual(self, alone: RoundShape) -> Iterator[RoundShape]:
        """What traffic brings most, with room, of the kind of a lone sequence's round and with as many rows for each sequence.
        Beside prompts there are hardly large trees."""
        members, rows = 1, alone.trees
        while members < self._most_members:
            members = min(2 * members, self._most_members)
            if members * rows > MOST_TREE_ROWS:
                return
            for chunk in _USUAL_CHUNKS if rows <= _BESIDE_PROMPTS else _USUAL_CHUNKS[:1]:
                if chunk <= self._most_chunk:
                    yield self._roomy(
                        alone._replace(
                            members=members,
                            chunk=chunk,
                            trees=members * rows,
                            truncated=members * rows if alone.truncated else 0,
                            chunk_members=int(chunk > 0),
                            tree_members=members,
                        )
                    )

    def took(self, shape: RoundShape, seconds: float) -> None:
        """A shape got its recording."""
        if self._wants[shape] > _WANTS:
            self._spent += seconds

    def _affords(self) -> bool:
        return self._spent < _SHARE * (self._clock() - self._started)

    def _candidates(self, wanted: RoundShape) -> list[RoundShape]:
        """Recordings that are larger in no unreasonable measure, the smallest first."""
        if self._version != self._graphs.version:
            self._version = self._graphs.version
            self._larger.clear()
        if wanted not in self._larger:
            self._larger[wanted] = sorted(self._holding(wanted), key=_size)
        return self._larger[wanted]

    def _holding(self, wanted: RoundShape) -> Iterator[RoundShape]:
        rows, kind = wanted.chunk + wanted.trees, _kind(wanted)
        for shape in self._graphs.shapes():
            if (
                shape.members >= wanted.members
                and shape.trees >= wanted.trees
                and shape.chunk >= wanted.chunk
                and shape.nodes >= wanted.nodes
                and shape.truncated >= wanted.truncated
                and shape.scored_rows >= wanted.scored_rows
                and shape.pages >= wanted.pages
                and shape.chunk + shape.trees <= _ROOM * rows
                and shape.members <= _ROOM * wanted.members
                and shape.pages <= _PAGES * wanted.pages
                and _kind(shape) == kind
            ):
                yield shape

    def _roomy(self, wanted: RoundShape) -> RoundShape:
        """The shape with room for others around it. A lone sequence's are recorded at start-up."""
        if wanted.members == 1:
            return wanted
        members = min(power_of_two(wanted.members), self._most_members)
        trees, nodes = wanted.trees, wanted.nodes
        if trees > wanted.members:
            trees = min(power_of_two(trees), MOST_TREE_ROWS)
            nodes = min(max(power_of_two(_BUSHY * trees // members), nodes), trees, MAX_NODES)
        elif trees:  # rows beyond the roots of those that read their prompts go to the others
            trees, nodes = max(trees, members), max(nodes, 2)
        chunk = wanted.chunk and max(min(power_of_two(max(wanted.chunk, 2 * CHUNK_BUCKETS[0])), self._most_chunk), wanted.chunk)
        pages = max(min(power_of_two(max(wanted.pages, _FEWEST_PAGES)), self._most_pages), wanted.pages)
        return wanted._replace(
            members=members,
            trees=trees,
            nodes=nodes,
            chunk=chunk,
            pages=pages,
            chunk_members=min(wanted.chunk_members, 1),  # most often one prompt is read beside answers
            tree_members=members if trees else 0,
            truncated=min(power_of_two(2 * wanted.truncated), trees) if wanted.truncated else 0,
            scored_rows=min(power_of_two(2 * wanted.scored_rows), trees) if wanted.scored_rows else 0,
        )


def _kind(shape: RoundShape) -> RoundShape:
    """All that must be equal: the steps of a round. Launches of attention know how many sequences there are, to no bit's
    change."""
    return shape._replace(
        members=0,
        chunk=int(shape.chunk > 0),
        trees=int(shape.trees > 0),
        nodes=0,
        pages=0,
        chunk_members=0,
        tree_members=0,
        truncated=0,
        scored_rows=0,
    )


def _size(shape: RoundShape) -> tuple[int, ...]:
    """What a round costs, roughly, in the order of what matters."""
    return shape.chunk + shape.trees, shape.pages, shape.nodes, shape.members
