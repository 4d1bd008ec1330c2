"""MarkBook: which prefixes have a kept state, for caches whose prefixes need one beside their pages."""

from collections import OrderedDict
from collections.abc import Sequence


class MarkBook:
    """A state is kept under the digest of the last page before it. The one used longest ago makes room.

    Args:
        num_marks: states that the caches can keep.
    """

    def __init__(self, num_marks: int) -> None:
        self._marks: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(num_marks))

    def take(self) -> int | None:
        """A mark to write to, the oldest prefix's where none is free; None where there are none at all."""
        if not self._free and self._marks:
            self._free.append(self._marks.popitem(last=False)[1])
        return self._free.pop() if self._free else None

    def give_back(self, mark: int) -> None:
        """Nothing worth keeping was written to it."""
        self._free.append(mark)

    def keep(self, digest: bytes, mark: int) -> None:
        """The state behind the page of that digest lies there."""
        if digest in self._marks:
            self._free.append(mark)
        else:
            self._marks[digest] = mark

    def longest(self, digests: Sequence[bytes]) -> tuple[int, int | None]:
        """(pages, mark) of the longest prefix that has a state; (0, None) if none has."""
        for count in range(len(digests), 0, -1):
            mark = self._marks.get(digests[count - 1])
            if mark is not None:
                self._marks.move_to_end(digests[count - 1])
                return count, mark
        return 0, None
