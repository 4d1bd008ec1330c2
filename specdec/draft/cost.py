"""What a round costs: seconds by rows and by context, measured at start-up and refined by every round.

Rows may repeat others: recorded rounds have rows without a draft, which a mixture of experts computes almost for nothing and a
dense model in full. So a round of `rows` rows, `distinct` of which differ, is held to cost what lies between rounds of so many
and of so few rows that all differ; where between is learned by row bucket, and borrowed from the nearest ones until then.

Beside the device the host works on the next round: rounds follow each other as fast as the slower one of the two. What the host
takes depends on the members, and on whether drafters run.
"""

import numpy as np

from specdec.arrays import FloatArray, IntArray
from specdec.draft.by_members import ByMembers

COST_BUCKETS = np.array(
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192]
)
_MOST_ROWS = int(COST_BUCKETS[-1])  # more are held to cost the same
_COLUMNS = np.searchsorted(COST_BUCKETS, np.arange(_MOST_ROWS + 1))  # the bucket of each number of rows
_STEPPED_ROWS = 64
_LOOKED_UP = 513  # numbers of rows whose cost is kept: all rounds without long prompts
# rows are padded to buckets up to here
_PADDED = np.where(np.arange(_MOST_ROWS + 1) <= _STEPPED_ROWS, COST_BUCKETS[_COLUMNS], np.arange(_MOST_ROWS + 1))
_MOST_MIXTURES = 256  # kept, of up to 6 kB each; a planner asks for a few dozen different ones
_FIRST_CONTEXT = 256  # contexts are told apart by powers of two from here
_NUM_CONTEXTS = 16
# the next four: fitted on rounds of SmolLM2 and of a 30B mixture of experts on an H200, whose medians drift by a percent a
# minute
_SMOOTHING = 0.1  # weight of a new measurement
_DRIFT = 0.02  # an estimate that moves less leaves the curves, and the shares of repeats, as they are
_OUTLIER = 2.0  # a measurement moves an estimate as if it were at most this factor away
_FLOOR = 0.25  # of a round is not drafting, whatever that takes on average
_COLD = 2  # rounds: on an H200's host they take half as long again
_TOLD = 3  # rounds, before what the host takes for such is known: the median of fewer may be an outlier
_TELLING = 0.05  # of a row's cost: smaller differences between two rounds tell nothing about repeats


class CostTable:
    """Seconds of a round."""

    def __init__(self) -> None:
        self._seconds = np.full((_NUM_CONTEXTS, len(COST_BUCKETS)), np.nan)
        self._drawn = self._seconds.copy()  # what `_curves` were drawn from
        self._curves: dict[int, tuple[FloatArray, FloatArray]] = {}
        self._repeats = np.full(len(COST_BUCKETS), np.nan)  # share of its own cost that a repeated row costs, by row bucket
        self._shares = np.ones(len(COST_BUCKETS))  # the same as it was drawn, with what is borrowed
        self._mixtures: dict[tuple[int, bytes], tuple[FloatArray, FloatArray]] = {}  # follow from curves and shares
        self._drafting = ByMembers()  # what drafting adds on the device, whatever is verified
        self._trial = ByMembers()  # what the host takes for rounds with drafters that have only begun to run
        self._kind: bool | None = None  # whether drafters ran in the last round
        self._run = self._run_members = 0  # rounds of that kind, one behind the other, and their members
        self.host_version = 0  # changes when the host takes longer, or less long, than it did
        self._host = {drafting: ByMembers(least=_TOLD) for drafting in (False, True)}

    def observe(self, rows: int, distinct: int, context: int, seconds: float, drafted_for: int = 0) -> None:
        """A round took the device `seconds`.

        Args:
            rows: that were computed.
            distinct: of which so many do not repeat another.
            context: tokens of the longest sequence.
            drafted_for: members, where drafters ran.
        """
        if drafted_for:
            seconds = max(seconds - self.drafting(drafted_for), seconds * _FLOOR)
        if distinct == rows:
            self._observe_rows(rows, context, seconds)
        elif self._known:
            self._observe_repeats(rows, distinct, context, seconds)

    def observe_drafting(self, members: int, seconds: float) -> None:
        """Drafting added so much to a round."""
        self._drafting.observe(members, seconds)

    def observe_host(self, members: int, drafting: bool, seconds: float) -> None:
        """The host took `seconds` for a round. drafting: whether drafters ran. For every round, in order.

        The first rounds of a kind take longer, so they do not count. A run that is over before that makes what was known older.
        """
        if drafting is not self._kind:
            if self._kind is not None and self._run <= _COLD:
                self.host_version += self._host[self._kind].forget(self._run_members)
            self._kind, self._run = drafting, 0
        self._run += 1
        self._run_members = members
        if self._run > _COLD:
            self.host_version += self._host[drafting].observe(members, seconds)
        elif drafting:
            self._trial.observe(members, seconds)

    def drafting(self, members: int) -> float:
        """Seconds that drafting adds to a round on the device."""
        return self._drafting.of(members)

    def without_drafting(self, rows: int, members: int, context: int) -> float:
        """From one round to the next where no drafter runs: seconds."""
        return max(self.plain(rows, context), self._host[False].of(members))

    def trial(self, rows: int, members: int, context: int) -> float:
        """Seconds of a round in which drafters are only tried."""
        return max(self.plain(rows, context) + self.drafting(members), self._trial.of(members))

    def with_drafting(self, rows: IntArray, distinct: FloatArray | IntArray, members: int, context: int) -> FloatArray:
        """The same where drafters run, of rounds of so many rows."""
        device = self.seconds(rows, distinct, context) + self.drafting(members)
        return np.maximum(device, self._host[True].of(members))

    def shift(self, seconds: float, context: int) -> None:
        """A round of one row takes `seconds`: what was measured so far lacks as much of every round."""
        self._seconds += seconds - self.plain(1, context)
        self._draw()

    def seconds(self, rows: IntArray, distinct: FloatArray | IntArray, context: int) -> FloatArray:
        """The expected seconds of rounds without drafting; never less for more rows. All 1 before the first measurement."""
        bucket = context_bucket(context)
        least = np.interp(distinct, COST_BUCKETS, self._curve(bucket)[0])
        whole, share = self._mixture(bucket, rows)
        mixed: FloatArray = least + share * (whole - least)
        return mixed

    def _mixture(self, bucket: int, rows: IntArray) -> tuple[FloatArray, FloatArray]:
        """What rounds of so many rows cost where all of them differ, and the share of that beyond one row that repeats cost."""
        key = bucket, rows.tobytes()  # planners ask for the same few numbers of rows round by round
        if key not in self._mixtures:
            curve, by_rows = self._curve(bucket)
            rows = np.minimum(rows, _MOST_ROWS)
            whole = by_rows[rows] if rows.max() < len(by_rows) else np.interp(_PADDED[rows], COST_BUCKETS, curve)
            # what repeated rows cost beyond the first; as it is learned bucket by bucket, a wider round might seem cheaper
            extra = np.interp(_PADDED[rows], COST_BUCKETS, np.maximum.accumulate(self._shares * (curve - curve[0])))
            if len(self._mixtures) >= _MOST_MIXTURES:
                self._mixtures.clear()
            self._mixtures[key] = whole, extra / np.maximum(whole - curve[0], np.finfo(np.float64).tiny)
        return self._mixtures[key]

    def plain(self, rows: int, context: int) -> float:
        """The same of one round whose rows all differ."""
        return float(self._whole(self._curve(context_bucket(context)), rows))

    @staticmethod
    def _whole(curves: tuple[FloatArray, FloatArray], rows: int) -> float:
        curve, by_rows = curves
        return float(by_rows[rows] if rows < len(by_rows) else np.interp(rows, COST_BUCKETS, curve))

    @property
    def _known(self) -> bool:
        return not bool(np.isnan(self._seconds).all())

    def _observe_rows(self, rows: int, context: int, seconds: float) -> None:
        bucket, rows = context_bucket(context), min(rows, _MOST_ROWS)
        column = _COLUMNS[rows]
        old = self._seconds[bucket, column]
        if self._known:
            curves = self._curve(bucket)
            curve = curves[0]
            seconds *= curve[column] / self._whole(curves, rows)
            expected = curve[column] if np.isnan(old) else old
            seconds = min(max(seconds, expected / _OUTLIER), expected * _OUTLIER)
        self._seconds[bucket, column] = seconds if np.isnan(old) else old + _SMOOTHING * (seconds - old)
        if not abs(self._seconds[bucket, column] / self._drawn[bucket, column] - 1) < _DRIFT:  # also where it is NaN
            self._draw()

    def _draw(self) -> None:
        self._drawn[:] = self._seconds
        self._curves.clear()
        self._mixtures.clear()

    def _observe_repeats(self, rows: int, distinct: int, context: int, seconds: float) -> None:
        curves = self._curve(context_bucket(context))
        curve, rows = curves[0], min(rows, _MOST_ROWS)
        least, whole = float(np.interp(distinct, COST_BUCKETS, curve)), self._whole(curves, rows)
        if whole - least < _TELLING * curve[0]:
            return
        column = _COLUMNS[rows]
        share = min(max((seconds - least) / (whole - least), 0.0), 1.0)
        old = self._shares[column] if np.isnan(self._repeats[column]) else self._repeats[column]
        self._repeats[column] = old + _SMOOTHING * (share - old)
        if abs(self._repeats[column] - self._shares[column]) > _DRIFT:
            known = np.flatnonzero(~np.isnan(self._repeats))
            self._shares = np.interp(COST_BUCKETS, COST_BUCKETS[known], self._repeats[known])
            self._mixtures.clear()

    def _curve(self, bucket: int) -> tuple[FloatArray, FloatArray]:
        """float64 [row buckets] of one context bucket; the same by numbers of rows, as these are padded, for the first few."""
        if bucket not in self._curves:
            curve = _monotone(self._fill(bucket))
            self._curves[bucket] = curve, np.interp(_PADDED[:_LOOKED_UP], COST_BUCKETS, curve)
        return self._curves[bucket]

    def _fill(self, bucket: int) -> FloatArray:
        measured = ~np.isnan(self._drawn)
        known = np.flatnonzero(measured.any(1))
        if not len(known):
            return np.ones(len(COST_BUCKETS))
        # the nearest context that was measured well lends its shape where this one was not
        full = known[measured[known].sum(1) * 2 >= measured[known].sum(1).max()]
        shape = full[np.argmin(np.abs(full - bucket))]
        curve = _interpolate(self._drawn[shape])
        own = measured[bucket]
        if shape != bucket and own.any():
            ratio = self._drawn[bucket, own] / curve[own]
            curve = curve * np.exp(np.interp(COST_BUCKETS, COST_BUCKETS[own], np.log(ratio)))
        return curve


def _interpolate(seconds: FloatArray) -> FloatArray:
    """Fill NaNs linearly in the number of rows; beyond the last two measurements the line through them goes on."""
    known = np.flatnonzero(~np.isnan(seconds))
    filled: FloatArray = np.interp(COST_BUCKETS, COST_BUCKETS[known], seconds[known])
    if len(known) >= 2:
        before, last = known[-2:]
        slope = max(seconds[last] - seconds[before], 0.0) / (COST_BUCKETS[last] - COST_BUCKETS[before])
        filled[last + 1 :] = seconds[last] + slope * (COST_BUCKETS[last + 1 :] - COST_BUCKETS[last])
    return filled


def _monotone(seconds: FloatArray) -> FloatArray:
    """Between the smallest majorant and the largest minorant that do not fall, so that one outlier weighs half."""
    above = np.maximum.accumulate(seconds)
    below = np.minimum.accumulate(seconds[::-1])[::-1]
    return np.asarray((above + below) / 2)


def context_bucket(context: int) -> int:
    """Contexts of one bucket cost the same."""
    return min(max((context - 1) // _FIRST_CONTEXT, 0).bit_length(), _NUM_CONTEXTS - 1)
