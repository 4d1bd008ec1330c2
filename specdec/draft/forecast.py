"""What each sequence's drafters will offer, foretold before they have looked.

In every round the device tells how likely each sequence's best candidates survive, whether there was room for them or not.
Their mean over the sequence's rounds, moved a little towards the last, foretells the next round that can still be planned.

Legend of shape suffixes: M members of a round, S slots, O candidates, likeliest first.
"""

import numpy as np

from specdec.arrays import BoolArray, FloatArray, IntArray
from specdec.kernels.tree_select import OFFERED

# The next four: the best of those that were compared in a simulation over 1,212 answers of SmolLM2-135M-Instruct at
# temperatures 0 and 1, with costs of that model and of a 30B mixture of experts on an H200 and of a CPU; all near them are
# within 0.3 %.
_PRIOR_ROUNDS = 8  # the mean before any round weighs as many rounds
_LEAST_WEIGHT = 0.05  # of a round in the mean
_TOWARDS_LAST = 0.3
_FIRST_ROUNDS = 2  # of a sequence, in which nothing is known and nothing is verified
# mean survival of the n-th candidate over the same answers, by n: (up to here, each)
_FIRST_OFFERS = ((1, 0.137), (2, 0.088), (3, 0.067), (5, 0.051), (7, 0.038), (11, 0.029), (15, 0.022), (31, 0.002))


class Forecast:
    """Args:
    num_slots: sequences at once.
    """

    def __init__(self, num_slots: int) -> None:
        first, filled = np.zeros(OFFERED), 0
        for end, survival in _FIRST_OFFERS:
            first[filled:end], filled = survival, end
        self._first_O = first
        self._means_SO = np.tile(first, (num_slots + 1, 1))
        self._there_SO = self._means_SO.copy()  # mean of whether there was an n-th candidate
        self._rounds_S = np.zeros(num_slots + 1)
        self._next_SO = np.zeros_like(self._means_SO)  # what follows from all that

    def enter(self, slot: int) -> None:
        """A sequence of which nothing is known."""
        self._means_SO[slot] = self._first_O
        self._there_SO[slot] = np.minimum(3 * self._first_O, 1.0)
        self._rounds_S[slot] = 0
        self._next_SO[slot] = 0.0

    def known(self, slots: IntArray) -> BoolArray:
        """bool [M]: whether enough is known of a sequence to verify anything."""
        ready: BoolArray = self._rounds_S[slots] >= _FIRST_ROUNDS
        return ready

    def expect(self, slots: IntArray) -> FloatArray:
        """float64 [M, O]: the chance that a sequence's best candidate, its second, ... survives; 0 where too little is
        known."""
        return self._next_SO[slots]

    def there(self, slots: IntArray) -> FloatArray:
        """float64 [M, O]: the chance that there is a best candidate, a second, ..."""
        return self._there_SO[slots]

    def observe(self, slots: IntArray, survivals_MO: FloatArray) -> None:
        """What was offered to some sequences."""
        rounds_M, means_MO, there_MO = self._rounds_S[slots], self._means_SO[slots], self._there_SO[slots]
        weights_M1 = np.maximum(1.0 / (rounds_M + _PRIOR_ROUNDS), _LEAST_WEIGHT)[:, None]
        means_MO += weights_M1 * (survivals_MO - means_MO)
        there_MO += weights_M1 * ((survivals_MO > 0) - there_MO)
        known_M1 = (rounds_M >= _FIRST_ROUNDS - 1)[:, None]
        self._next_SO[slots] = known_M1 * (means_MO + _TOWARDS_LAST * (survivals_MO - means_MO))
        self._means_SO[slots], self._there_SO[slots], self._rounds_S[slots] = means_MO, there_MO, rounds_M + 1
