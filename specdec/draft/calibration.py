"""How often drafts are accepted, learned online from those whose outcome is known."""

import numpy as np
import numpy.typing as npt

from specdec.arrays import FloatArray, IntArray
from specdec.draft.tree import DraftTree

_DEPTHS = np.array([1, 2, 4, 8, 16, 32])  # last depth of each bucket; deeper ones share one more
_NUM_RANKS = 4
_CONFIDENCES = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98])  # edges between buckets; one more for "none"
_NO_CONFIDENCE = len(_CONFIDENCES) + 1
_FIRST_GUESS = np.array([0.5, 0.2, 0.1, 0.05])  # by rank, where the drafter gives no confidence
_PRIOR_TRIALS = 6.0  # the drafter's own confidence weighs as many outcomes
_MAX_TRIALS = 256.0  # then the older half is forgotten
_REQUEST_PRIOR = 10.0  # expected acceptances that a request's own record has to outweigh
_REQUEST_MEMORY = 0.95  # per verified tree
_HIGHEST = 0.995


class RequestRecord:
    """Drafts accepted and expected to be, per drafter, in one request."""

    def __init__(self, num_drafters: int) -> None:
        self.accepted = np.zeros(num_drafters)
        self.expected = np.zeros(num_drafters)

    def factor(self) -> FloatArray:
        """float64 [drafters]: how much better or worse than expected this request's drafts fare."""
        return np.asarray((self.accepted + _REQUEST_PRIOR) / (self.expected + _REQUEST_PRIOR))


class _Table:
    """Outcomes by cell, the older half forgotten now and then."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._accepted = np.zeros(shape)
        self._trials = np.zeros(shape)

    def mean(self, cells: tuple[IntArray, ...], prior: FloatArray) -> FloatArray:
        """float64 [n]: the share of each cell that was accepted, the prior weighing as `_PRIOR_TRIALS` outcomes."""
        share: FloatArray = (self._accepted[cells] + _PRIOR_TRIALS * prior) / (self._trials[cells] + _PRIOR_TRIALS)
        return share

    def add(self, cells: tuple[IntArray, ...], accepted: npt.NDArray[np.bool_]) -> None:
        """Count outcomes."""
        np.add.at(self._accepted, cells, accepted)
        np.add.at(self._trials, cells, 1.0)
        full = self._trials[cells] > _MAX_TRIALS
        if full.any():
            old = tuple(index[full] for index in cells)
            self._accepted[old] /= 2  # once a cell, however often it is named
            self._trials[old] /= 2


class Calibration:
    """Probability that a node is accepted given that its parent is, by drafter, depth, rank and confidence.

    Args:
        num_drafters: as many as `DraftTree.sources` may name.
        shape_only: do not look at confidences. A rule that draws from the drafter's distribution needs trees whose shape
            does not depend on what was drawn.
    """

    def __init__(self, num_drafters: int, shape_only: bool) -> None:
        shape = (num_drafters, _NUM_RANKS, _NO_CONFIDENCE + 1)
        self._all_depths = _Table(shape)
        self._by_depth = _Table((*shape, len(_DEPTHS) + 1))
        self._shape_only = shape_only

    def survival(self, tree: DraftTree, record: RequestRecord) -> FloatArray:
        """float64 [n]: probability that each node and all above it are accepted; 1 at the root, at most the parent's."""
        parents = tree.parents.tolist()
        alone = self._conditional(tree, _depths(parents))
        alone[1:] = np.clip(alone[1:] * record.factor()[tree.sources[1:]], 0.0, _HIGHEST)
        survival: list[float] = []
        for parent, chance in zip(parents, alone.tolist(), strict=True):
            survival.append(chance * survival[parent] if survival else 1.0)
        return np.array(survival)

    def observe(self, tree: DraftTree, accepted: IntArray, record: RequestRecord) -> None:
        """A tree was verified; `accepted` are the nodes of the kept path (the root's place in it does not matter)."""
        kept = np.zeros(len(tree), np.bool_)
        kept[0] = True
        kept[accepted] = True
        known = kept[tree.parents]
        known[0] = False
        depths = _depths(tree.parents.tolist())
        expected = self._conditional(tree, depths)[known]
        record.accepted *= _REQUEST_MEMORY
        record.expected *= _REQUEST_MEMORY
        np.add.at(record.accepted, tree.sources[known], kept[known])
        np.add.at(record.expected, tree.sources[known], expected)
        cells = tuple(index[known] for index in self._cells(tree, depths))
        self._all_depths.add(cells[:-1], kept[known])
        self._by_depth.add(cells, kept[known])

    def _conditional(self, tree: DraftTree, depths: IntArray) -> FloatArray:
        """float64 [n]: what all depths taught is the prior of a depth, the drafter's word is the prior of all depths."""
        cells = self._cells(tree, depths)
        guess: FloatArray = _FIRST_GUESS[cells[1]]
        if not self._shape_only:
            guess = np.where(np.isnan(tree.log_q), guess, np.exp(tree.log_q))
        return self._by_depth.mean(cells, self._all_depths.mean(cells[:-1], guess))

    def _cells(self, tree: DraftTree, depths: IntArray) -> tuple[IntArray, ...]:
        """Table index of each node: drafter, rank, confidence, depth; the root's is meaningless but valid."""
        confidence = np.full(len(tree), _NO_CONFIDENCE)
        if not self._shape_only:
            given = ~np.isnan(tree.log_q)
            confidence[given] = np.searchsorted(_CONFIDENCES, np.exp(tree.log_q[given]))
        return tree.sources, np.minimum(tree.ranks, _NUM_RANKS - 1), confidence, np.searchsorted(_DEPTHS, depths)


def _depths(parents: list[int]) -> IntArray:
    """As `DraftTree.depths`, in time independent of the depth."""
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return np.array(depths)
