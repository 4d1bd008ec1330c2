"""How many rows a sequence brings to a round of the device loop: what the last rounds gave, over what they took.

The device looks for matches at any width, also where it verifies none, so that it is always known how often a match is right
about the next token. Whether more rows pay follows from that and from the measured time of a round.
"""

from itertools import accumulate
from operator import mul

import numpy as np

from specdec.cost import CostTable
from specdec.loop_members import LoopRound

_WIDTHS = (1, 2, 3, 4, 6, 8)
_SMOOTHING = 0.04  # of one sequence in one round
_TIME_SMOOTHING = 0.1
_FIRST_SURVIVAL = 0.7  # of a draft whose ancestors were accepted, before any was seen
_MARGIN = 1.02  # by so much a wider round must promise to be better


class WidthPolicy:
    """Expected tokens per second of every width; the best is taken.

    Args:
        costs: of rounds of rows that differ, for widths that were not timed yet.
        most_nodes: the most rows of a sequence.
        adaptive: False always takes the most.
    """

    def __init__(self, costs: CostTable, most_nodes: int, adaptive: bool) -> None:
        self._costs = costs
        self._most = most_nodes
        self._adaptive = adaptive
        self._found = 0.5  # share of rounds in which a sequence has a match
        self._survival = [_FIRST_SURVIVAL] * max(_WIDTHS)  # by depth
        self._seconds: dict[tuple[int, int], float] = {}  # of a round, by sequences and width

    def choose(self, num_sequences: int, context: int, limit: int) -> int:
        """Rows of each sequence.

        Args:
            num_sequences: of the round.
            context: tokens of the longest one.
            limit: the most that there is room for.
        """
        most = min(self._most, limit)
        if not self._adaptive:
            return most
        best, best_rate = 1, 0.0
        for width in _WIDTHS:
            if width > most:
                break
            rate = self._expected(width) / self._time(num_sequences, width, context)
            if rate > best_rate * (_MARGIN if best_rate else 1.0):
                best, best_rate = width, rate
        return best

    def observe(self, outcome: LoopRound) -> None:
        """What became of a round's drafts."""
        for found, guessed, accepted, drafted in zip(
            outcome.found.tolist(), outcome.guessed.tolist(), outcome.accepted.tolist(), outcome.drafted.tolist(), strict=True
        ):
            self._found += _SMOOTHING * (found - self._found)
            if not found:
                continue
            if not drafted:
                self._learn(0, guessed)
            for depth in range(min(accepted + 1, drafted)):
                self._learn(depth, depth < accepted)

    def observe_seconds(self, num_sequences: int, width: int, seconds: float) -> None:
        """A round of such a shape took so long, the next one enqueued before it ended."""
        key = (num_sequences, width)
        known = self._seconds.setdefault(key, seconds)
        self._seconds[key] = known + _TIME_SMOOTHING * (min(seconds, 2 * known) - known)

    def _learn(self, depth: int, survived: bool) -> None:
        self._survival[depth] += _SMOOTHING * (survived - self._survival[depth])

    def _expected(self, width: int) -> float:
        """Tokens of a sequence in a round."""
        reached: float = sum(accumulate(self._survival[: width - 1], mul))
        return 1.0 + self._found * reached

    def _time(self, num_sequences: int, width: int, context: int) -> float:
        """Seconds, measured or by the measured width next to it; the costs alone are of rounds that the host lays out."""
        timed = [known for known in _WIDTHS if (num_sequences, known) in self._seconds]
        if not timed:
            return self._estimate(num_sequences, width, context)
        nearest = min(timed, key=lambda known: abs(known - width))
        seconds = self._seconds[num_sequences, nearest]
        if nearest == width:
            return seconds
        return seconds * self._estimate(num_sequences, width, context) / self._estimate(num_sequences, nearest, context)

    def _estimate(self, num_sequences: int, width: int, context: int) -> float:
        """Seconds by the costs; rows without a draft repeat others and cost next to nothing."""
        rows = round(num_sequences * (1 + self._found * (width - 1)))
        return float(self._costs.seconds(np.array([rows]), context)[0])
