"""How much likelier a sequence's drafts are right than those of others: an offset of their log odds, for each slot.

Legend of shape suffixes: S slots, N outcomes.
"""

import numpy as np

from specdec.arrays import BoolArray, FloatArray, IntArray

# a sequence's own outcomes weigh as much as so many at even odds did; the first counts before any was seen. It insures against
# chances that are wrong for a sequence, and costs nothing where they are right (same simulation as in `forecast.py`)
_FIRST_WEIGHT, _MOST_WEIGHT = 16.0, 64.0
_STEP = 0.25  # offsets are told in such steps, so that plans stay alike from round to round
_MOST = 2.0
_PER_TEMPERATURE = -0.72  # chances are learned for greedy requests and for those drawn at temperature 1


class Habits:
    """A Newton step of logistic regression for each outcome, over a curvature that stops growing so that the old is forgotten.

    Args:
        num_slots: sequences at once.
    """

    def __init__(self, num_slots: int) -> None:
        self._offsets_S = np.zeros(num_slots + 1)
        self._curvatures_S = np.full(num_slots + 1, _FIRST_WEIGHT / 4)  # of an outcome at even odds: p (1 - p)
        self._odds_S = np.ones(num_slots + 1)  # as they are told

    def enter(self, slot: int, temperature: float) -> None:
        """A sequence of which nothing is known but its temperature."""
        self._offsets_S[slot] = _PER_TEMPERATURE * (min(temperature, 2.0) - 1.0) if temperature > 0 else 0.0
        self._curvatures_S[slot] = _FIRST_WEIGHT / 4
        self._tell(slot)

    def odds(self, slots: IntArray) -> FloatArray:
        """What the odds of a sequence's drafts are beside those of others."""
        odds: FloatArray = self._odds_S[slots]
        return odds

    def observe(self, slots_N: IntArray, chances_N: FloatArray, right_N: BoolArray) -> None:
        """Candidates of so much chance for others were right or wrong for these sequences."""
        odds_N = np.exp(self._offsets_S[slots_N]) * chances_N
        own_N = odds_N / (odds_N + 1.0 - chances_N)
        size = len(self._offsets_S)
        self._curvatures_S += np.bincount(slots_N, weights=own_N * (1.0 - own_N), minlength=size)
        np.minimum(self._curvatures_S, _MOST_WEIGHT / 4, out=self._curvatures_S)
        self._offsets_S += np.bincount(slots_N, weights=right_N - own_N, minlength=size) / self._curvatures_S
        self._tell(slots_N)

    def _tell(self, slots: IntArray | int) -> None:
        steps = np.round(np.minimum(np.maximum(self._offsets_S[slots], -_MOST), _MOST) / _STEP)
        self._odds_S[slots] = np.exp(steps * _STEP)
