"""Seconds that grow with the members of a round, smoothed as they are measured."""

from bisect import bisect_left

_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_SMOOTHING = 0.1  # weight of a new measurement, as of rows (see `specdec.draft.cost`)
_OUTLIER = 2.0  # a measurement moves an estimate as if it were at most this factor away
_MOVED = 0.2  # an estimate that moved by less is no news: between rounds of one kind the host's time varies by a third


class ByMembers:
    """What is not known is borrowed from fewer members, and is nothing where nothing is known of them either: what seems cheap
    is tried, and known from then on. This is asked several times a round, so it is lists."""

    def __init__(self) -> None:
        self._seconds: list[float | None] = [None] * len(_BUCKETS)
        self._news = self._seconds.copy()  # estimates as they were when they last were news

    def observe(self, members: int, seconds: float, step: float = 0.0) -> bool:
        """It took `seconds` this time. Whether that is news: not known before, or other than it was when it last was news.

        step: in seconds, an estimate may move as if the measurement were so far away, however small it is itself.
        """
        bucket = members_bucket(members)
        old, told = self._seconds[bucket], self._news[bucket]
        if old is not None:
            seconds = min(max(seconds, old / _OUTLIER), max(old * _OUTLIER, old + step))
            seconds = old + _SMOOTHING * (seconds - old)
        self._seconds[bucket] = seconds = max(seconds, 0.0)
        if told is not None and abs(seconds - told) <= _MOVED * told:
            return False
        self._news[bucket] = seconds
        return True

    def of(self, members: int) -> float:
        """The expected seconds."""
        for bucket in range(members_bucket(members), -1, -1):
            if (seconds := self._seconds[bucket]) is not None:
                return seconds
        return 0.0


def members_bucket(members: int) -> int:
    """Rounds of one bucket of members are held to be alike."""
    return min(bisect_left(_BUCKETS, members), len(_BUCKETS) - 1)
