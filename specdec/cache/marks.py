"""MarkBook: which prefixes have a kept state, for caches whose prefixes need one beside their pages."""

from collections import OrderedDict
from collections.abc import Sequence


class MarkBook:
    """A state is kept under the digest of the last page before it. The one used longest ago makes room.

    Args:
        num_marks: states that the caches can keep.
    """

    def __init__(self, num_marks: int) -> None:
        self._num_marks = num_marks
        self._marks: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_marks))
        self._lent: set[int] = set()  # rounds underway write there

    def take(self) -> int | None:
        """A mark to write to, the oldest prefix's where none is free; None where there are none at all."""
        if not self._free and self._marks:
            self._free.append(self._marks.popitem(last=False)[1])
        if not self._free:
            return None
        mark = self._free.pop()
        self._lent.add(mark)
        return mark

    def settle(self, mark: int, digest: bytes | None) -> None:
        """A mark that was taken holds the state behind the page of that digest; None: nothing worth keeping. Once is enough."""
        if mark not in self._lent:
            return
        self._lent.remove(mark)
        if digest is None or digest in self._marks:
            self._free.append(mark)
        else:
            self._marks[digest] = mark

    def forget(self, digest: bytes) -> None:
        """The page of that digest is no longer there, or must not be used."""
        if digest in self._marks:
            self._free.append(self._marks.pop(digest))

    def longest(self, digests: Sequence[bytes]) -> tuple[int, int | None]:
        """(pages, mark) of the longest prefix that has a state; (0, None) if none has."""
        for count in range(len(digests), 0, -1):
            mark = self._marks.get(digests[count - 1])
            if mark is not None:
                self._marks.move_to_end(digests[count - 1])
                return count, mark
        return 0, None

    def check(self, underway: bool) -> None:
        """Raise AssertionError unless every mark is free, kept, or lent to a round underway."""
        assert underway or not self._lent, "marks come back from rounds"
        everywhere = sorted([*self._free, *self._marks.values(), *self._lent])
        assert everywhere == list(range(self._num_marks)), "every mark is somewhere once"
