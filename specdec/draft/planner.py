"""The planner: how much is drafted and verified, so that expected tokens per second are the most.

Every round is planned before its drafts are known. So the planner foretells what the drafters will offer each sequence, weighs
that against what rounds of so many rows cost, and gives each sequence a number of nodes. The device fills them with the
likeliest candidates, by chances that are learned here, and drops those that are not worth a row. Where nothing pays, nothing is
drafted, and now and then it is tried again.

Legend of shape suffixes: M members of a round, N nodes of a tree, D depths, O candidates, X kinds of candidates.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from specdec.arrays import BoolArray, FloatArray, IntArray, share_evenly
from specdec.draft.by_members import members_bucket
from specdec.draft.calibration import Calibration
from specdec.draft.cost import CostTable
from specdec.draft.forecast import Forecast
from specdec.draft.habits import Habits
from specdec.draft.trials import Trials
from specdec.kernels.tree_select import OFFERED

# A draft that is left out is not lost: the next round offers it again, with more evidence. So where rows are weighed against
# each other, drafts count for less than what they give. The best value lies between 0.6 and 0.85 for three tables of costs
# (same simulation as in `forecast.py`), and more makes more requests lose.
_VALUE = 0.7
# Against a plain round they count for nearly all of it (same simulation as in `trials.py`).
_WHOLE = 0.9
_MARGIN = 1.01  # by so much a dearer round must promise to be better: medians of rounds differ by as much from minute to minute
_LEAST, _MOST = 0.02, 0.95  # of the survival that is worth a row
_NEWS = 0.02  # chances that moved less are not told again


@dataclass(frozen=True, slots=True)
class Budgets:
    """nodes: int64 [M], of each tree, the root counted. odds: float64 [M]. least, drafting: see `RoundPlan`."""

    nodes: IntArray
    odds: FloatArray
    least: float
    drafting: bool


class Seen(NamedTuple):
    """What became of the drafts of a round's members; fields as in `specdec.round.outcome.Outcome`, [M], [M, N] or [M, O]."""

    slots: IntArray
    accepted: IntArray
    drafted: IntArray
    offers: IntArray
    offered: BoolArray
    paths: IntArray
    kinds: IntArray
    parents: IntArray
    survivals: FloatArray


class Planner:
    """Deterministic in what it is told.

    Args:
        priors: float64 [X], see `CandidateKinds`.
        num_slots: sequences at once.
        max_nodes: of one tree, the root counted.
        max_rows: tree rows of a round.
        adaptive: False drafts as much as there is room for.
        row_buckets: the numbers of tree rows that rounds have, whatever was drafted; None where they have as many as drafts.
    """

    def __init__(
        self,
        priors: FloatArray,
        *,
        num_slots: int,
        max_nodes: int,
        max_rows: int,
        adaptive: bool = True,
        row_buckets: IntArray | None = None,
    ) -> None:
        self.costs = CostTable()
        self.max_nodes = max_nodes
        self._calibration = Calibration(priors)
        self._forecast = Forecast(num_slots)
        self._habits = Habits(num_slots)
        self._max_rows = max_rows
        self._adaptive = adaptive
        self._buckets = row_buckets
        self._wider: dict[tuple[int, bool], IntArray] = {}
        self._trials = Trials()
        self._plain = 0.0  # seconds of a plain round, as it was last weighed
        self._extra = 0.0  # of a round with drafts over a plain one, as it was last planned: seconds
        # of the rounds for which drafting was found not to pay: the bucket of their members, and what was known
        self._resting: tuple[int, int, int] | None = None
        self._num_seen = 0  # rounds with drafters whose outcome is known
        self._told: FloatArray | None = None
        self._drafters = bool(len(priors))
        self._learned = True  # since the chances were asked for

    def enter(self, slot: int, temperature: float) -> None:
        """A new sequence takes a slot."""
        self._forecast.enter(slot)
        self._habits.enter(slot, temperature)
        self._trials.enter()

    def new_chances(self) -> FloatArray | None:
        """float64 [X], how likely each kind is right; None where that has hardly changed since it was asked last."""
        if not self._learned:
            return None
        self._learned = False
        chances = self._calibration.chances
        if self._told is not None and np.abs(chances - self._told).max(initial=0.0) < _NEWS:
            return None
        self._told = chances.copy()
        return self._told

    def plan(self, slots: IntArray, most: IntArray, chunk_rows: int, context: int) -> Budgets:
        """How many nodes each member gets.

        Args:
            slots: int64 [M].
            most: int64 [M], nodes that each may have; 0 without a tree, 1 where nothing may be drafted.
            chunk_rows: prompt rows that the round computes anyway.
            context: tokens of the longest member.
        """
        nodes = np.minimum(most, 1)
        resting = members_bucket(len(slots)), self.costs.host_version, self._num_seen
        if self._resting == resting and not self._trials.may_begin():  # nothing was learned since that was found
            self._trials.save(self._plain)
            return Budgets(nodes, np.ones(len(slots)), 0.0, False)
        most = np.minimum(most, self.max_nodes)
        room = self._max_rows - int(nodes.sum())
        if not self._drafters or room <= 0 or most.max() <= 1:
            return Budgets(nodes, np.ones(len(slots)), 0.0, False)
        if not self._adaptive:
            return Budgets(nodes + share_evenly(most - nodes, room), np.ones(len(slots)), 0.0, True)
        budgets, pays = self._weigh(slots, most, nodes, chunk_rows, context)
        self._resting = None if budgets.drafting or pays else resting
        return budgets

    def _weigh(self, slots: IntArray, most: IntArray, nodes: IntArray, chunk_rows: int, context: int) -> tuple[Budgets, bool]:
        """The number of drafts, of all members together, that promises the most tokens per second, and whether that pays.

        This runs before every round, on a small model within 0.5 ms. So it looks at few numbers, in few calls.
        """
        trees, members = int(nodes.sum()), len(slots)
        base, room = chunk_rows + trees, self._max_rows - trees
        self._plain = plain = self.costs.without_drafting(base, members, context)
        order, gains = self._best(slots, most, room)
        best, filled, lead = 0, 0, 0.0
        asked = max(float(self.costs.with_drafting(np.array([base]), np.array([base]), members, context)[0]), plain)
        rate, distinct = trees / asked, float(base)
        if len(order):
            counts = self._counts(trees, len(order), bool(chunk_rows))
            filled_K = np.minimum(counts, len(order))
            distinct_K = (base + np.cumsum(self._forecast.there(slots).ravel()[order]))[filled_K - 1]
            gains_K = np.cumsum(gains)[filled_K - 1]
            seconds_K = np.maximum(self.costs.with_drafting(base + counts, distinct_K, members, context), asked)
            rates_K = (trees + _VALUE * gains_K) / seconds_K
            place = int(rates_K.argmax())
            lead = float(trees + _WHOLE * gains_K[place]) / float(seconds_K[place]) * plain / trees
            if lead > _MARGIN and rates_K[place] > rate:
                rate, distinct = float(rates_K[place]), float(distinct_K[place])
                best, filled = int(counts[place]), int(filled_K[place])
                self._extra = float(seconds_K[place]) - plain
        cost = max(self.costs.trial(base, members, context) - plain, 0.0)
        paced = plain > self.costs.plain(base, context)
        if not self._trials.drafts(lead if best else 0.0, cost, plain, paced):
            return Budgets(nodes, np.ones(members), 0.0, False), best > 0
        least = _LEAST  # where nothing is verified, all that is offered is told, so that it is known what would pay
        if self._buckets is None:  # what is not found takes no row
            nodes = nodes + share_evenly(np.maximum(most - 1, 0), room) * self._forecast.known(slots)
            least = self._least(rate, base + best, distinct, members, context)
        elif best:
            nodes = nodes + np.bincount(order[:filled] // OFFERED, minlength=members)
            least = self._least(rate, base + best, distinct, members, context)
        return Budgets(nodes, self._habits.odds(slots), least, True), best > 0

    def _best(self, slots: IntArray, most: IntArray, room: int) -> tuple[IntArray, FloatArray]:
        """The drafts that are the likeliest to survive, as places in [M, OFFERED], and how likely; none that is worth no
        row."""
        gains_MO = self._forecast.expect(slots)
        if most.min() <= OFFERED:
            gains_MO = np.where(np.arange(OFFERED) < (most - 1)[:, None], gains_MO, 0.0)
        gains = gains_MO.ravel()
        there = np.flatnonzero(gains >= _LEAST)
        order = there[np.argsort(-gains[there], kind="stable")[:room]]
        return order, gains[order]

    def _counts(self, trees: int, most: int, chunks: bool) -> IntArray:
        """Numbers of drafts to weigh. Beside prompts few, since each makes a shape of its own."""
        if self._buckets is None:
            return np.arange(1, most + 1)
        if (trees, chunks) not in self._wider:
            buckets = self._buckets[np.searchsorted(self._buckets, trees) :]
            counts = buckets[:: max(len(buckets) // 3, 1) if chunks else 1] - trees
            self._wider[trees, chunks] = counts[counts > 0]
        counts = self._wider[trees, chunks]
        found: IntArray = counts[: int(counts.searchsorted(most)) + 1]
        return found

    def _least(self, rate: float, rows: int, distinct: float, members: int, context: int) -> float:
        """The survival that is worth a row: what drafts more cost, in tokens at this round's rate."""
        step = 2.0
        more = np.array([distinct, distinct + step])
        whole = np.ceil(more).astype(np.int64) if self._buckets is None else np.full(2, max(rows, math.ceil(more[1])))
        before, after = self.costs.with_drafting(whole, more, members, context).tolist()
        return min(max(rate * float(after - before) / step / _VALUE, _LEAST), _MOST)

    def observe(self, seen: Seen) -> None:
        """What became of a round's drafts, and what was offered."""
        if not self._adaptive or not len(seen.slots):
            return
        self._num_seen += 1
        only_offered_M = (seen.drafted == 0) & (seen.offers >= 0)
        slots, kinds, right = seen.slots[only_offered_M], seen.offers[only_offered_M], seen.offered[only_offered_M]
        if seen.drafted.any():
            self._trials.earn(self._plain * float(seen.accepted.sum()) / len(seen.slots) - self._extra)
            verified = _verified(seen)
            slots, kinds, right = map(np.concatenate, zip((slots, kinds, right), verified, strict=True))
        if len(kinds):
            self._habits.observe(slots, self._calibration.chances[kinds], right)
            self._calibration.observe(kinds, right)
            self._learned = True
        self._forecast.observe(seen.slots, seen.survivals)


def _verified(seen: Seen) -> tuple[IntArray, IntArray, BoolArray]:
    """Slots and kinds of the drafts all above which were right, and whether they were right as well."""
    members, size = seen.kinds.shape
    on_path_MD = np.arange(size) <= seen.accepted[:, None]
    kept_MN = np.zeros((members, size), np.bool_)
    kept_MN[np.nonzero(on_path_MD)[0], seen.paths[on_path_MD]] = True
    known_MN = (seen.kinds >= 0) & np.take_along_axis(kept_MN, np.maximum(seen.parents, 0), 1)
    return seen.slots[np.nonzero(known_MN)[0]], seen.kinds[known_MN], kept_MN[known_MN]
