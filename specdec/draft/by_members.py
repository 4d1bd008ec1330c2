"""Seconds that grow with the members of a round, as they are measured."""

from bisect import bisect_left
from collections import deque

_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_KEPT = 9  # measurements, whose median counts: the host's vary by a third, and one in a hundred is ten times as long
_MOVED = 0.2  # an estimate that moved by less is no news


class ByMembers:
    """What is not known is borrowed from fewer members, and is nothing where nothing is known of them either: what seems cheap
    is tried, and known from then on. This is asked several times a round, so it is lists.

    Args:
        least: measurements before anything is known.
    """

    def __init__(self, least: int = 1) -> None:
        self._least = least
        self._measured = [deque[float](maxlen=_KEPT) for _ in _BUCKETS]
        self._medians: list[float | None] = [None] * len(_BUCKETS)
        self._news = self._medians.copy()  # as they were when they last were news

    def observe(self, members: int, seconds: float) -> bool:
        """It took `seconds` this time. Whether that is news, see `_tell`."""
        bucket = members_bucket(members)
        self._measured[bucket].append(seconds)
        return self._tell(bucket)

    def forget(self, members: int) -> bool:
        """The oldest measurement is too old to count. Whether that is news."""
        bucket = members_bucket(members)
        if self._measured[bucket]:
            self._measured[bucket].popleft()
        return self._tell(bucket)

    def _tell(self, bucket: int) -> bool:
        """Whether this is known now and was not, or the other way round, or is other than it was when it last was news."""
        measured, told = self._measured[bucket], self._news[bucket]
        median = max(sorted(measured)[len(measured) // 2], 0.0) if len(measured) >= self._least else None
        self._medians[bucket] = median
        if median is told or (median is not None and told is not None and abs(median - told) <= _MOVED * told):
            return False
        self._news[bucket] = median
        return True

    def of(self, members: int) -> float:
        """The expected seconds."""
        for bucket in range(members_bucket(members), -1, -1):
            if (seconds := self._medians[bucket]) is not None:
                return seconds
        return 0.0


def members_bucket(members: int) -> int:
    """Rounds of one bucket of members are held to be alike."""
    return min(bisect_left(_BUCKETS, members), len(_BUCKETS) - 1)
