"""How often candidates of each kind are right, learned online from those whose outcome is known."""

import numpy as np

from specdec.arrays import BoolArray, FloatArray, IntArray

# Kinds differ between targets and content by half a unit of log odds (22,183 answers of SmolLM2), which so many outcomes tell;
# an hour-old mixture of requests says little about the present one.
_PRIOR_TRIALS = 30.0  # a prior weighs as much as so many outcomes
_MAX_TRIALS = 600.0  # then the older half is forgotten


class Calibration:
    """Args:
    priors: float64 [X], the chance of each kind before any outcome.
    """

    def __init__(self, priors: FloatArray) -> None:
        self._priors = priors
        self._right = np.zeros(len(priors))
        self._trials = np.zeros(len(priors))
        self.chances = priors.copy()  # that a candidate is right, given that all above it are

    def observe(self, kinds: IntArray, right: BoolArray) -> None:
        """Candidates of these kinds, all above which were right, were right or wrong."""
        size = len(self._priors)
        self._trials += np.bincount(kinds, minlength=size)
        self._right += np.bincount(kinds, weights=right, minlength=size)
        full = self._trials > _MAX_TRIALS
        if full.any():
            self._right[full] /= 2
            self._trials[full] /= 2
        self.chances = (self._right + _PRIOR_TRIALS * self._priors) / (self._trials + _PRIOR_TRIALS)
