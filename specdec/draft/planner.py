"""The planner: how much is drafted and verified, so that expected tokens per second are the most.

Every round is planned before its drafts are known. So the planner foretells what the drafters will offer each sequence, weighs
that against what rounds of so many rows cost, and gives each sequence a number of nodes. The device fills them with the
likeliest candidates, by chances that are learned here, and drops those that are not worth a row. Where nothing pays, nothing is
drafted, and now and then it is tried again.

Legend of shape suffixes: M members of a round, N nodes of a tree, D depths, O candidates, X kinds of candidates.
"""

from dataclasses import dataclass

import numpy as np

from specdec.arrays import BoolArray, FloatArray, IntArray, share_evenly
from specdec.draft.calibration import Calibration
from specdec.draft.cost import CostTable
from specdec.draft.forecast import Forecast
from specdec.draft.habits import Habits
from specdec.kernels.tree_select import OFFERED

# A draft that is left out is not lost: the next round offers it again, with more evidence. So drafts count for less than what
# they give. The best value lies between 0.6 and 0.85 for three tables of costs (same simulation as in `forecast.py`), and more
# makes more requests lose.
_VALUE = 0.7
_MARGIN = 1.01  # by so much a dearer round must promise to be better: medians of rounds differ by as much from minute to minute
# Where drafting does not pay, and costs more than this share of a round, it stops; then it is tried for a few rounds after so
# many, which costs less than a tenth of what drafting costs.
_CHEAP = 0.01
_PAUSE, _TRIAL = 48, 4
_LEAST, _MOST = 0.02, 0.95  # of the survival that is worth a row
_NEWS = 0.02  # chances that moved less are not told again


@dataclass(frozen=True, slots=True)
class Budgets:
    """nodes: int64 [M], of each tree, the root counted. odds: float64 [M]. least, drafting: see `RoundPlan`."""

    nodes: IntArray
    odds: FloatArray
    least: float
    drafting: bool


@dataclass(frozen=True, slots=True)
class Seen:
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
        sources: int64 [X], the drafter's name that each kind counts for.
        num_slots: sequences at once.
        max_nodes: of one tree, the root counted.
        max_rows: tree rows of a round.
        adaptive: False drafts as much as there is room for.
        row_buckets: the numbers of tree rows that rounds have, whatever was drafted; None where they have as many as drafts.
    """

    def __init__(
        self,
        priors: FloatArray,
        sources: IntArray,
        *,
        num_slots: int,
        max_nodes: int,
        max_rows: int,
        adaptive: bool = True,
        row_buckets: IntArray | None = None,
    ) -> None:
        self.sources = sources
        self.costs = CostTable()
        self.max_nodes = max_nodes
        self._calibration = Calibration(priors)
        self._forecast = Forecast(num_slots)
        self._habits = Habits(num_slots)
        self._max_rows = max_rows
        self._adaptive = adaptive
        self._buckets = row_buckets
        self._paused = 0  # rounds since drafters ran
        self._trial = 0  # rounds that they are tried for
        self._told: FloatArray | None = None

    def enter(self, slot: int, temperature: float) -> None:
        """A new sequence takes a slot."""
        self._forecast.enter(slot)
        self._habits.enter(slot, temperature)

    def new_chances(self) -> FloatArray | None:
        """float64 [X], how likely each kind is right; None where that has hardly changed since it was asked last."""
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
        nodes, most = np.minimum(most, 1), np.minimum(most, self.max_nodes)
        room = self._max_rows - int(nodes.sum())
        may = np.flatnonzero(most > 1)
        if not len(self.sources) or not len(may) or room <= 0:
            return Budgets(nodes, np.ones(len(slots)), 0.0, False)
        if not self._adaptive:
            return Budgets(nodes + share_evenly(most - nodes, room), np.ones(len(slots)), 0.0, True)
        return self._weigh(slots, most, nodes, may, chunk_rows, context)

    def _weigh(self, slots: IntArray, most: IntArray, nodes: IntArray, may: IntArray, chunk_rows: int, context: int) -> Budgets:
        """The number of drafts, of all members together, that promises the most tokens per second."""
        trees, own = int(nodes.sum()), slots[may]
        room = self._max_rows - trees
        width = int(min(most[may].max() - 1, OFFERED))
        gains_MW, there_MW = self._forecast.expect(own, width)
        gains_MW[~self._forecast.known(own)] = 0.0
        gains_MW[np.arange(width) >= (most[may] - 1)[:, None]] = 0.0
        gains = gains_MW.ravel()
        order = np.argsort(-gains, kind="stable")[: min(int(np.count_nonzero(gains)), room)]
        tokens = trees + _VALUE * np.concatenate(([0.0], np.cumsum(gains[order])))
        distinct = chunk_rows + trees + np.concatenate(([0.0], np.cumsum(there_MW.ravel()[order])))
        counts = self._counts(trees, len(order), chunk_rows)
        rows = chunk_rows + trees + counts
        plain = float(self.costs.seconds(rows[:1], rows[:1], context)[0])
        filled = np.minimum(counts, len(order))
        seconds = np.maximum(self.costs.seconds(rows, distinct[filled], context), plain)
        rates = tokens[filled] / (seconds + self.costs.drafting)
        best = int(np.argmax(rates))
        pays = bool(rates[best] > _MARGIN * trees / plain) and bool(counts[best])
        if not self._drafts(pays, self.costs.drafting / plain):
            return Budgets(nodes, np.ones(len(slots)), 0.0, False)
        chosen = best if pays else 0
        least = self._least(float(rates[chosen]), int(rows[chosen]), float(distinct[filled[chosen]]), context)
        nodes = nodes.copy()
        if self._buckets is None:  # what is not found takes no row
            nodes[may] += share_evenly(most[may] - 1, room) * self._forecast.known(own)
        else:
            nodes[may] += np.bincount(order[: filled[chosen]] // width, minlength=len(may))
        odds = np.ones(len(slots))
        odds[may] = self._habits.odds(own)
        return Budgets(nodes, odds, least, True)

    def _counts(self, trees: int, most: int, chunk_rows: int) -> IntArray:
        """Numbers of drafts to weigh, none first. Beside prompts few, since each makes a shape of its own."""
        if self._buckets is None:
            return np.arange(most + 1)
        buckets = self._buckets[np.searchsorted(self._buckets, trees) :]
        if chunk_rows:
            buckets = buckets[:: max(len(buckets) // 3, 1)]
        counts = buckets - trees
        last = int(np.searchsorted(counts, most))
        found: IntArray = np.concatenate(([0], counts[counts > 0][: last + 1]))
        return found

    def _drafts(self, pays: bool, share: float) -> bool:
        """Whether drafters run: where they pay, where they cost next to nothing, and now and then."""
        if pays or share < _CHEAP:
            self._paused = self._trial = 0
            return True
        if self._trial:
            self._trial -= 1
            return True
        self._paused += 1
        if self._paused > _PAUSE:
            self._paused, self._trial = 0, _TRIAL - 1
            return True
        return False

    def _least(self, rate: float, rows: int, distinct: float, context: int) -> float:
        """The survival that is worth a row: what drafts more cost, in tokens at this round's rate."""
        step = 2.0
        more = np.array([distinct, distinct + step])
        whole = np.ceil(more).astype(np.int64) if self._buckets is None else np.full(2, max(rows, int(np.ceil(more[1]))))
        before, after = self.costs.seconds(whole, more, context).tolist()
        return float(np.clip(rate * (after - before) / step / _VALUE, _LEAST, _MOST))

    def observe(self, seen: Seen) -> None:
        """What became of a round's drafts, and what was offered."""
        if not self._adaptive or not len(seen.slots):
            return
        members, size = seen.kinds.shape
        on_path_MD = np.arange(size) <= seen.accepted[:, None]
        kept_MN = np.zeros((members, size), np.bool_)
        kept_MN[np.repeat(np.arange(members), on_path_MD.sum(1)), seen.paths[on_path_MD]] = True
        known_MN = (seen.kinds >= 0) & np.take_along_axis(kept_MN, np.maximum(seen.parents, 0), 1)
        only_offered_M = (seen.drafted == 0) & (seen.offers >= 0)
        kinds = np.concatenate((seen.kinds[known_MN], seen.offers[only_offered_M]))
        right = np.concatenate((kept_MN[known_MN], seen.offered[only_offered_M]))
        slots = np.concatenate((np.repeat(seen.slots, known_MN.sum(1)), seen.slots[only_offered_M]))
        if len(kinds):
            self._habits.observe(slots, self._calibration.chances[kinds], right)
            self._calibration.observe(kinds, right)
        self._forecast.observe(seen.slots, seen.survivals)
