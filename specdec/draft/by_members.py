"""Seconds that grow with the members of a round, smoothed as they are measured."""

import numpy as np

_BUCKETS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512])
_COLUMNS = np.searchsorted(_BUCKETS, np.arange(int(_BUCKETS[-1]) + 1))  # the bucket of each number of members
_SMOOTHING = 0.1  # weight of a new measurement, as of rows (see `specdec.draft.cost`)
_MOVED = 0.2  # an estimate that moved by less is no news: between rounds of one kind the host's time varies by a third
_OUTLIER = 2.0  # a measurement moves an estimate as if it were at most this factor away


class ByMembers:
    """What is not known is borrowed from fewer members, and is nothing where nothing is known of them either: what seems cheap
    is tried, and known from then on."""

    def __init__(self) -> None:
        self._seconds = np.full(len(_BUCKETS), np.nan)
        self._news = self._seconds.copy()  # estimates as they were when they last were news

    def observe(self, members: int, seconds: float, step: float = 0.0) -> bool:
        """It took `seconds` this time. Whether that is news: not known before, or other than it was when it last was news.

        step: in seconds, an estimate may move as if the measurement were so far away, however small it is itself.
        """
        column = members_bucket(members)
        old = float(self._seconds[column])
        if not np.isnan(old):
            seconds = min(max(seconds, old / _OUTLIER), max(old * _OUTLIER, old + step))
            seconds = old + _SMOOTHING * (seconds - old)
        self._seconds[column] = seconds = max(seconds, 0.0)
        if abs(seconds - self._news[column]) <= _MOVED * self._news[column]:  # never where it is NaN
            return False
        self._news[column] = seconds
        return True

    def of(self, members: int) -> float:
        """The expected seconds."""
        known = self._seconds[members_bucket(members) :: -1]
        known = known[~np.isnan(known)]
        return float(known[0]) if len(known) else 0.0


def members_bucket(members: int) -> int:
    """Rounds of one bucket of members are held to be alike."""
    return int(_COLUMNS[min(members, len(_COLUMNS) - 1)])
