"""What a round of the device loop takes: as it was measured, and where it was not, as like rounds were."""

from dataclasses import dataclass

from specdec.draft.cost import CostTable
from specdec.loop_members import LoopTime
from specdec.round.graphs import row_bucket

_SMOOTHING = 0.1  # of a new measurement
_OUTLIER = 2.0  # one counts as at most so many times what is expected


@dataclass(slots=True)
class _Seconds:
    """Of rounds of one shape. Rows without a draft repeat others, so drafts count for themselves."""

    plain: float | None = None  # without a draft
    drafted: float | None = None  # with `drafts` of them
    drafts: float = 0.0

    def observe(self, drafts: int, seconds: float) -> None:
        if drafts:
            self.drafts = drafts if self.drafted is None else self.drafts + _SMOOTHING * (drafts - self.drafts)
            self.drafted = _moved(self.drafted, seconds)
        else:
            self.plain = _moved(self.plain, seconds)


class LoopCosts:
    """Seconds by sequences, rows of each, and drafts among them.

    Args:
        costs: what the device takes for rows that differ, for shapes that were not timed yet.
    """

    def __init__(self, costs: CostTable) -> None:
        self._costs = costs
        self._known: dict[tuple[int, int], _Seconds] = {}

    def observe(self, time: LoopTime) -> None:
        """A round took so long."""
        key = (row_bucket(time.num_sequences), time.width)
        self._known.setdefault(key, _Seconds()).observe(time.drafts, time.seconds)

    def seconds(self, num_sequences: int, width: int, drafts: float, context: int) -> float:
        """Expected of a round.

        Args:
            num_sequences: of the round.
            width: rows of each.
            drafts: that are expected to be verified, of all sequences together.
            context: tokens of the longest sequence.
        """
        size = row_bucket(num_sequences)
        own = self._known.get((size, width))
        if own is None:
            timed = [known for count, known in self._known if count == size]
            if not timed:
                return self._estimate(num_sequences + drafts, context)
            own = self._known[size, min(timed, key=lambda known: abs(known - width))]
        elif own.plain is not None and own.drafted is not None:
            return own.plain + (own.drafted - own.plain) * drafts / own.drafts
        if own.plain is not None:
            seconds, rows = own.plain, float(num_sequences)
        else:
            assert own.drafted is not None, "one of the two was observed"
            seconds, rows = own.drafted, num_sequences + own.drafts
        return seconds * self._estimate(num_sequences + drafts, context) / self._estimate(rows, context)

    def _estimate(self, rows: float, context: int) -> float:
        return self._costs.seconds_of(round(rows), context)


def _moved(known: float | None, seconds: float) -> float:
    return seconds if known is None else known + _SMOOTHING * (min(seconds, _OUTLIER * known) - known)
