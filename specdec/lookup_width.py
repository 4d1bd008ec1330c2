"""How many rows a sequence brings to a round of the device loop: what the last rounds gave, over what they took.

The device looks for matches at any width, also where it verifies none, so that it is always known how often a match is right
about the next token. A match that was right so often in a row, its *streak*, is the likelier to go on being right: so a draft
is as deep as its sequence's streak promises, and copying is told from chance without verifying a thing.
"""

from collections import Counter

from specdec.cost import CostTable
from specdec.loop_members import LoopRound

_WIDTHS = (1, 2, 3, 4, 6, 8)
_SMOOTHING = 0.04  # of one sequence in one round
_TIME_SMOOTHING = 0.1
# by streak, before any was seen: rather too low, since a draft that fails costs, and what a match foretells is learned for free
_FIRST_SURVIVAL = (0.3, 0.5, 0.65, 0.75, 0.8)
_FIRST_FOUND = (0.5, 0.95)  # without a streak and in one
_LONGEST_STREAK = 12  # longer ones are no surer
_MARGIN = 1.02  # by so much a wider round must promise to be better


class WidthPolicy:
    """Expected tokens per second of every width; the best is taken.

    Args:
        costs: what the device takes for rows that differ, for widths that were not timed yet.
        most_nodes: the most rows of a sequence.
        adaptive: False always takes the most.
    """

    def __init__(self, costs: CostTable, most_nodes: int, adaptive: bool) -> None:
        self._costs = costs
        self._most = most_nodes
        self._adaptive = adaptive
        self._found = list(_FIRST_FOUND)  # share of rounds in which a sequence has a match, without a streak and in one
        first = [*_FIRST_SURVIVAL, *_FIRST_SURVIVAL[-1:] * (_LONGEST_STREAK + 1 - len(_FIRST_SURVIVAL))]
        self._survival = first  # by how many tokens a match foretold in a row
        self._streaks: list[int] = []  # of each sequence
        self._seconds: dict[tuple[int, int], float] = {}  # of a round, by sequences and width

    def widths(self, limit: int) -> tuple[int, ...]:
        """What `choose` may answer."""
        most = min(self._most, limit)
        return tuple(width for width in _WIDTHS if width <= most) if self._adaptive else (most,)

    def choose(self, num_sequences: int, context: int, limit: int) -> int:
        """Rows of each sequence.

        Args:
            num_sequences: of the round.
            context: tokens of the longest one.
            limit: the most that there is room for.
        """
        widths = self.widths(limit)
        if not self._adaptive:
            return widths[0]
        streaks = self._streaks if len(self._streaks) == num_sequences else [0] * num_sequences
        reached = self._reached(Counter(streaks), widths[-1] - 1)
        best, best_rate = 1, 0.0
        for width in widths:
            rate = (num_sequences + reached[width - 1]) / self._time(num_sequences, width, context)
            if rate > best_rate * (_MARGIN if best_rate else 1.0):
                best, best_rate = width, rate
        return best

    def observe(self, outcome: LoopRound) -> None:
        """What became of a round's drafts."""
        if len(self._streaks) != len(outcome.emitted):
            self._streaks = [0] * len(outcome.emitted)
        for index, (found, guessed, accepted, drafted) in enumerate(
            zip(outcome.found.tolist(), outcome.guessed.tolist(), outcome.accepted, outcome.drafted, strict=True)
        ):
            streak = self._streaks[index]
            self._found[streak > 0] += _SMOOTHING * (found - self._found[streak > 0])
            # the first one that was wrong ends a streak
            known = [] if not found else [True] * accepted + [False] * (accepted < drafted) if drafted else [guessed]
            for right in known:
                self._survival[streak] += _SMOOTHING * (right - self._survival[streak])
                streak = min(streak + 1, _LONGEST_STREAK) if right else 0
            self._streaks[index] = streak if found else 0

    def observe_seconds(self, num_sequences: int, width: int, seconds: float) -> None:
        """A round of such a shape took so long, the next one enqueued before it ended."""
        key = (num_sequences, width)
        known = self._seconds.setdefault(key, seconds)
        self._seconds[key] = known + _TIME_SMOOTHING * (min(seconds, 2 * known) - known)

    def _reached(self, streaks: Counter[int], depth: int) -> list[float]:
        """Drafts that are expected to be right, of all sequences together, by how many each brings."""
        totals = [0.0] * (depth + 1)
        for streak, count in streaks.items():
            chance, total = count * self._found[streak > 0], 0.0
            for level in range(depth):
                chance *= self._survival[min(streak + level, _LONGEST_STREAK)]
                total += chance
                totals[level + 1] += total
        return totals

    def _time(self, num_sequences: int, width: int, context: int) -> float:
        """Seconds, measured or by the measured width next to it."""
        own = self._seconds.get((num_sequences, width))
        if own is not None:
            return own
        timed = [known for known in _WIDTHS if (num_sequences, known) in self._seconds]
        if not timed:
            return self._estimate(num_sequences, width, context)
        nearest = min(timed, key=lambda known: abs(known - width))
        seconds = self._seconds[num_sequences, nearest]
        return seconds * self._estimate(num_sequences, width, context) / self._estimate(num_sequences, nearest, context)

    def _estimate(self, num_sequences: int, width: int, context: int) -> float:
        """Seconds by the costs; rows without a draft repeat others and cost next to nothing."""
        in_streak = sum(streak > 0 for streak in self._streaks) / max(len(self._streaks), 1)
        found = self._found[0] + in_streak * (self._found[1] - self._found[0])
        rows = round(num_sequences * (1 + found * (width - 1)))
        return self._costs.seconds_of(rows, context)
