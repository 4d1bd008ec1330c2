"""What a sequence brings to a round of the device loop: what the last rounds gave, over what they took.

The device looks for matches at any width, also where it verifies none, so that it is always known how often a match is right
about the next token. A match that was right so often in a row, its *streak*, is the likelier to go on being right: so a draft
is as deep as its sequence's streak promises, and copying is told from chance without verifying a thing. A match of a single
token is the least sure of all; it is drafted from where rows are cheap.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from specdec.loop_costs import LoopCosts
from specdec.loop_members import SHORTEST_MATCH, SURE_MATCH, LoopPlan, LoopRound

_WIDTHS = (1, 2, 3, 4, 6, 8)
_SMOOTHING = 0.04  # of one sequence in one round
# of a single token's match, then by streak, before any was seen: rather too low, since a draft that fails costs, and what a
# match foretells is learned for free
_FIRST_SURVIVAL = (0.2, 0.3, 0.5, 0.65, 0.75, 0.8)
_LONGEST_STREAK = 12  # longer ones are no surer
_FIRST_FOUND = (0.5, 0.95)  # without a streak and in one
_FIRST_SHORT = 0.5
_SURE = 0.99  # nothing is held to be surer than this, or less sure than the rest of it
# a sequence's own habits weigh as much as so many outcomes at even odds did; the first counts before any was seen
_FIRST_WEIGHT, _MOST_WEIGHT = 8.0, 32.0
_MARGIN = 1.01  # by so much a dearer round must promise to be better
_JUDGED = 8  # sequences a round: the habits of many together change slowly, and judging them takes the host's time


@dataclass(slots=True)
class _Tilt:
    """How much likelier than for others something is for one sequence: an offset of its log odds.

    A Newton step of logistic regression for each outcome, over a curvature that stops growing so that the old is forgotten.
    """

    offset: float = 0.0
    curvature: float = _FIRST_WEIGHT / 4  # of an outcome at even odds: p (1 - p)

    def of(self, usual: Sequence[float]) -> list[float]:
        """The sequence's own chances, where others have the usual ones."""
        against = math.exp(-self.offset)
        return [chance / (chance + (1.0 - chance) * against) for chance in usual]

    def learn(self, usual: float, happened: bool) -> None:
        """Something of the usual chance did or did not happen."""
        chance = usual / (usual + (1.0 - usual) * math.exp(-self.offset))
        self.curvature = min(self.curvature + chance * (1.0 - chance), _MOST_WEIGHT / 4)
        self.offset += (happened - chance) / self.curvature


@dataclass(slots=True)
class _Habits:
    """Of one sequence."""

    streak: int = 0
    found: _Tilt = field(default_factory=_Tilt)  # that there is a match, without a streak
    right: _Tilt = field(default_factory=_Tilt)  # that a match is right


class WidthPolicy:
    """Expected tokens per second of every plan; the best is taken.

    Args:
        costs: what rounds take.
        most_nodes: the most rows of a sequence.
        adaptive: False always takes the most, of every match.
    """

    def __init__(self, costs: LoopCosts, most_nodes: int, adaptive: bool) -> None:
        self.costs = costs
        self._most = most_nodes
        self._adaptive = adaptive
        self._found = list(_FIRST_FOUND)  # share of rounds in which a sequence has a sure match, without a streak and in one
        self._short = _FIRST_SHORT  # share of the others in which it has a match of a single token
        levels = 2 + _LONGEST_STREAK  # a single token's match, then a sure one by how many tokens it foretold in a row
        self._survival = [*_FIRST_SURVIVAL, *_FIRST_SURVIVAL[-1:] * (levels - len(_FIRST_SURVIVAL))]
        self._habits: dict[Hashable, _Habits] = {}
        self._judged: tuple[int, int, LoopPlan] | None = None  # sequences, room, what they bring
        self._rounds_left = 0  # that it holds for

    def widths(self, limit: int) -> tuple[int, ...]:
        """Rows that `choose` may answer."""
        most = min(self._most, limit)
        return tuple(width for width in _WIDTHS if width <= most) if self._adaptive else (most,)

    def start(self, key: Hashable) -> None:
        """A sequence of which nothing is known."""
        self._habits[key] = _Habits()

    def release(self, key: Hashable) -> None:
        """It is over."""
        self._habits.pop(key, None)

    def choose(self, keys: Sequence[Hashable], context: int, limit: int) -> LoopPlan:
        """What each sequence brings.

        Args:
            keys: of the round's sequences.
            context: tokens of the longest one.
            limit: the most rows that there is room for.
        """
        widths, count = self.widths(limit), len(keys)
        if widths[-1] == 1:
            return LoopPlan(1, 0)  # with no room for drafts a match is not worth looking for
        if not self._adaptive:
            return LoopPlan(widths[-1], SHORTEST_MATCH)
        self._rounds_left -= 1
        if self._judged is None or self._judged[:2] != (count, limit) or self._rounds_left <= 0:
            self._judged = count, limit, self._judge(keys, context, widths)
            self._rounds_left = count // _JUDGED
        return self._judged[2]

    def _judge(self, keys: Sequence[Hashable], context: int, widths: Sequence[int]) -> LoopPlan:
        """The plan that promises the most tokens a second."""
        best, count = LoopPlan(1, SURE_MATCH), len(keys)
        sure, short = self._expect(keys, widths[-1] - 1)
        plain = self.costs.seconds(count, 1, 0.0, context)
        best_rate = count / plain
        for width in widths[1:]:
            drafts, bring, right = width - 1, 0.0, 0.0
            for shortest, expected in ((SURE_MATCH, sure), (SHORTEST_MATCH, short)):
                bring, right = bring + expected[0], right + expected[drafts]
                # more rows never take less: what looks so was measured at another context, or in a worse moment
                rate = (count + right) / max(self.costs.seconds(count, width, bring * drafts, context), plain)
                if rate > best_rate * _MARGIN:
                    best, best_rate = LoopPlan(width, shortest), rate
        return best

    def observe(self, keys: Sequence[Hashable], outcome: LoopRound) -> None:
        """What became of a round's drafts; sequences that are over are passed by."""
        rows = zip(keys, outcome.matched, outcome.guessed, outcome.accepted, outcome.drafted, strict=True)
        for key, matched, guessed, accepted, drafted in rows:
            habits = self._habits.get(key)
            if habits is None:
                continue
            if not matched:
                self._observe(habits, 0, ())
                continue
            # the first one that was wrong ends a streak
            self._observe(habits, matched, [True] * accepted + [False] * (accepted < drafted) if drafted else (guessed,))

    def _observe(self, habits: _Habits, matched: int, known: Sequence[bool]) -> None:
        streak, sure = habits.streak, matched >= SURE_MATCH
        if not streak:
            habits.found.learn(self._found[0], sure)
        self._found[streak > 0] = _moved(self._found[streak > 0], sure)
        if not sure:
            self._short = _moved(self._short, matched > 0)
            streak = 0
        for right in known:
            level = 1 + streak if sure or streak else 0
            habits.right.learn(self._survival[level], right)
            self._survival[level] = _moved(self._survival[level], right)
            streak = min(streak + 1, _LONGEST_STREAK) if right else 0
        habits.streak = streak

    def _expect(self, keys: Sequence[Hashable], depth: int) -> tuple[list[float], list[float]]:
        """Of sure matches, and of a single token's: how many sequences will have one, then how many drafts will be right where
        each brings one, two, ... `depth`. Every round waits for this, so it is plain arithmetic."""
        sure, short = [0.0] * (depth + 1), [0.0] * (depth + 1)
        for key in keys:
            habits = self._habits[key]
            streak = habits.streak
            found = self._found[1] if streak else habits.found.of(self._found)[0]
            own = habits.right.of(self._survival)
            for expected, chance, level in ((sure, found, 1 + streak), (short, (1.0 - found) * self._short, 0)):
                total = 0.0
                expected[0] += chance
                for drafts in range(1, depth + 1):
                    chance *= own[min(level, 1 + _LONGEST_STREAK)]
                    total += chance
                    expected[drafts] += total
                    level += 1 if level else 2  # a match that was right is a sure one with a streak
        return sure, short


def _moved(chance: float, happened: bool) -> float:
    return min(max(chance + _SMOOTHING * (happened - chance), 1.0 - _SURE), _SURE)
