"""What a round costs: seconds by number of rows and by context, measured at start-up and refined by every round."""

import numpy as np

from specdec.arrays import FloatArray, IntArray

ROW_BUCKETS = np.array(
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
)
_STEPPED_ROWS = 64
_FIRST_CONTEXT = 256  # contexts are told apart by powers of two from here
_NUM_CONTEXTS = 16
_SMOOTHING = 0.1  # weight of a new measurement
_DRIFT = 0.01  # an estimate that moves less leaves the curves as they are
_OUTLIER = 2.0  # a measurement moves an estimate as if it were at most this factor away


class CostTable:
    """Seconds of a round by row bucket and context bucket.

    Up to `_STEPPED_ROWS` a number of rows costs what the next larger bucket costs, as it does where rows are padded to
    buckets; between larger ones the cost is linear.
    """

    def __init__(self) -> None:
        self._seconds = np.full((_NUM_CONTEXTS, len(ROW_BUCKETS)), np.nan)
        self._drawn = self._seconds.copy()  # what `_curves` were drawn from
        self._curves: dict[int, FloatArray] = {}
        self._known: dict[tuple[int, int], float] = {}  # see `seconds_of`

    def observe(self, rows: int, context: int, seconds: float) -> None:
        """A round of `rows` rows, its longest context `context` tokens, took `seconds`."""
        bucket = context_bucket(context)
        column = min(int(np.searchsorted(ROW_BUCKETS, rows)), len(ROW_BUCKETS) - 1)
        old = self._seconds[bucket, column]
        if not np.isnan(self._seconds).all():
            curve = self._curve(bucket)
            seconds *= curve[column] / self.seconds(np.array([rows]), context)[0]
            expected = curve[column] if np.isnan(old) else old
            seconds = float(np.clip(seconds, expected / _OUTLIER, expected * _OUTLIER))
        self._seconds[bucket, column] = seconds if np.isnan(old) else old + _SMOOTHING * (seconds - old)
        if not abs(self._seconds[bucket, column] / self._drawn[bucket, column] - 1) < _DRIFT:  # also where it is NaN
            self._drawn[:] = self._seconds
            self._curves.clear()
            self._known.clear()

    def seconds_of(self, rows: int, context: int) -> float:
        """`seconds` of a single number of rows, for who asks every round."""
        key = (rows, context_bucket(context))
        if key not in self._known:
            self._known[key] = float(self.seconds(np.array([rows]), context)[0])
        return self._known[key]

    def seconds(self, rows: IntArray, context: int) -> FloatArray:
        """The expected seconds of rounds with so many rows; never less for more rows. All 1 before the first measurement."""
        stepped = ROW_BUCKETS[np.searchsorted(ROW_BUCKETS, np.minimum(rows, _STEPPED_ROWS))]
        seconds: FloatArray = np.interp(
            np.where(rows <= _STEPPED_ROWS, stepped, rows), ROW_BUCKETS, self._curve(context_bucket(context))
        )
        return seconds

    def _curve(self, bucket: int) -> FloatArray:
        """float64 [row buckets] of one context bucket."""
        if bucket not in self._curves:
            self._curves[bucket] = _monotone(self._fill(bucket))
        return self._curves[bucket]

    def _fill(self, bucket: int) -> FloatArray:
        measured = ~np.isnan(self._drawn)
        known = np.flatnonzero(measured.any(1))
        if not len(known):
            return np.ones(len(ROW_BUCKETS))
        # the nearest context that was measured well lends its shape where this one was not
        full = known[measured[known].sum(1) * 2 >= measured[known].sum(1).max()]
        shape = full[np.argmin(np.abs(full - bucket))]
        curve = _interpolate(self._drawn[shape])
        own = measured[bucket]
        if shape != bucket and own.any():
            ratio = self._drawn[bucket, own] / curve[own]
            curve = curve * np.exp(np.interp(ROW_BUCKETS, ROW_BUCKETS[own], np.log(ratio)))
        return curve


def _interpolate(seconds: FloatArray) -> FloatArray:
    """Fill NaNs linearly in the number of rows; beyond the last two measurements the line through them goes on."""
    known = np.flatnonzero(~np.isnan(seconds))
    filled: FloatArray = np.interp(ROW_BUCKETS, ROW_BUCKETS[known], seconds[known])
    if len(known) >= 2:
        before, last = known[-2:]
        slope = max(seconds[last] - seconds[before], 0.0) / (ROW_BUCKETS[last] - ROW_BUCKETS[before])
        filled[last + 1 :] = seconds[last] + slope * (ROW_BUCKETS[last + 1 :] - ROW_BUCKETS[last])
    return filled


def _monotone(seconds: FloatArray) -> FloatArray:
    """Between the smallest majorant and the largest minorant that do not fall, so that one outlier weighs half."""
    above = np.maximum.accumulate(seconds)
    below = np.minimum.accumulate(seconds[::-1])[::-1]
    return np.asarray((above + below) / 2)


def context_bucket(context: int) -> int:
    """Contexts of one bucket cost the same."""
    return min(max((context - 1) // _FIRST_CONTEXT, 0).bit_length(), _NUM_CONTEXTS - 1)
