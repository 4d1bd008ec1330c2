"""What a sequence brings to a round of the device loop: what the last rounds gave, over what they took.

The device looks for matches at any width, also where it verifies none, so that it is always known how often a match is right
about the next token. A match that was right so often in a row, its *streak*, is the likelier to go on being right: so a draft
is as deep as its sequence's streak promises, and copying is told from chance without verifying a thing. A match of a single
token is the least sure of all; it is drafted from where rows are cheap.

Legend of shape suffixes: S sequences, D drafts.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from specdec.cost import CostTable
from specdec.loop_members import SHORTEST_MATCH, SURE_MATCH, LoopPlan, LoopRound

_WIDTHS = (1, 2, 3, 4, 6, 8)
_SMOOTHING = 0.04  # of one sequence in one round
_TIME_SMOOTHING = 0.1
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

FloatArray = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Tilt:
    """How much likelier than for others something is for one sequence: an offset of its log odds.

    A Newton step of logistic regression for each outcome, over a curvature that stops growing so that the old is forgotten.
    """

    offset: float = 0.0
    curvature: float = _FIRST_WEIGHT / 4  # of an outcome at even odds: p (1 - p)

    def learn(self, usual: float, happened: bool) -> None:
        """Something of the usual chance did or did not happen."""
        chance = 1.0 / (1.0 + math.exp(-_log_odds(usual) - self.offset))
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
        costs: what the device takes for rows that differ, for plans that were not timed yet.
        most_nodes: the most rows of a sequence.
        adaptive: False always takes the most.
    """

    def __init__(self, costs: CostTable, most_nodes: int, adaptive: bool) -> None:
        self._costs = costs
        self._most = most_nodes
        self._adaptive = adaptive
        self._found = list(_FIRST_FOUND)  # share of rounds in which a sequence has a sure match, without a streak and in one
        self._short = _FIRST_SHORT  # share of the others in which it has a match of a single token
        levels = 2 + _LONGEST_STREAK  # a single token's match, then a sure one by how many tokens it foretold in a row
        self._survival = [*_FIRST_SURVIVAL, *_FIRST_SURVIVAL[-1:] * (levels - len(_FIRST_SURVIVAL))]
        self._habits: dict[Hashable, _Habits] = {}
        self._seconds: dict[tuple[int, LoopPlan], float] = {}  # of a round, by sequences and plan

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
        widths = self.widths(limit)
        best = LoopPlan(widths[0], SURE_MATCH)
        if len(widths) == 1:
            return best
        reached, shares = self._reached([self._habits[key] for key in keys], widths[-1] - 1)
        best_rate = len(keys) / self._time(len(keys), best, shares, context)
        for width in widths[1:]:
            for shortest in (SURE_MATCH, SHORTEST_MATCH):
                plan = LoopPlan(width, shortest)
                rate = (len(keys) + reached[shortest][width - 2]) / self._time(len(keys), plan, shares, context)
                if rate > best_rate * _MARGIN:
                    best, best_rate = plan, rate
        return best

    def observe(self, keys: Sequence[Hashable], outcome: LoopRound) -> None:
        """What became of a round's drafts; sequences that are over are passed by."""
        rows = zip(keys, outcome.matched, outcome.guessed, outcome.accepted, outcome.drafted, strict=True)
        for key, matched, guessed, accepted, drafted in rows:
            habits = self._habits.get(key)
            if habits is not None:
                # the first one that was wrong ends a streak
                known = [True] * accepted + [False] * (accepted < drafted) if drafted else [guessed]
                self._observe(habits, matched, known)

    def _observe(self, habits: _Habits, matched: int, known: list[bool]) -> None:
        streak, sure = habits.streak, matched >= SURE_MATCH
        if not streak:
            habits.found.learn(self._found[0], sure)
        self._found[streak > 0] += _SMOOTHING * (sure - self._found[streak > 0])
        if not sure:
            self._short += _SMOOTHING * ((matched > 0) - self._short)
            streak = 0
        for right in known if matched else ():
            level = 1 + streak if sure or streak else 0
            habits.right.learn(self._survival[level], right)
            self._survival[level] += _SMOOTHING * (right - self._survival[level])
            streak = min(streak + 1, _LONGEST_STREAK) if right else 0
        habits.streak = streak

    def observe_seconds(self, num_sequences: int, plan: LoopPlan, seconds: float) -> None:
        """A round of such a shape took so long, the next one enqueued before it ended."""
        key = (num_sequences, plan)
        known = self._seconds.setdefault(key, seconds)
        self._seconds[key] = known + _TIME_SMOOTHING * (min(seconds, 2 * known) - known)

    def _reached(self, habits: list[_Habits], depth: int) -> tuple[dict[int, FloatArray], dict[int, float]]:
        """By the shortest match that is drafted from.

        Returns:
            drafts that are expected to be right, of all sequences together, [D] by how many each brings; the share of the
            sequences that bring any.
        """
        streak_S = np.array([own.streak for own in habits])
        usual = _log_odds(np.array(self._survival))
        tilt_S1 = np.array([own.right.offset for own in habits])[:, None]
        level_SD = 1 + np.minimum(streak_S[:, None] + np.arange(depth), _LONGEST_STREAK)
        level_D = np.minimum(np.where(np.arange(depth) > 0, np.arange(depth) + 1, 0), 1 + _LONGEST_STREAK)
        sure_odds_S = np.where(
            streak_S > 0, _log_odds(self._found[1]), _log_odds(self._found[0]) + [own.found.offset for own in habits]
        )
        sure_S = _chance(sure_odds_S)
        short_S = (1.0 - sure_S) * self._short
        by_sure_D = sure_S @ _chance(usual[level_SD] + tilt_S1).cumprod(1).cumsum(1)
        by_short_D = short_S @ _chance(usual[level_D] + tilt_S1).cumprod(1).cumsum(1)
        sure, short = float(sure_S.mean()), float(short_S.mean())
        return {SURE_MATCH: by_sure_D, SHORTEST_MATCH: by_sure_D + by_short_D}, {SURE_MATCH: sure, SHORTEST_MATCH: sure + short}

    def _time(self, num_sequences: int, plan: LoopPlan, shares: dict[int, float], context: int) -> float:
        """Seconds, measured or by the measured plan that is most like it."""
        own = self._seconds.get((num_sequences, plan))
        if own is not None:
            return own
        timed = [known for count, known in self._seconds if count == num_sequences]
        estimate = self._estimate(num_sequences, plan, shares, context)
        if not timed:
            return estimate
        nearest = min(timed, key=lambda known: (abs(known.width - plan.width), known.shortest != plan.shortest))
        seconds = self._seconds[num_sequences, nearest]
        return seconds * estimate / self._estimate(num_sequences, nearest, shares, context)

    def _estimate(self, num_sequences: int, plan: LoopPlan, shares: dict[int, float], context: int) -> float:
        """Seconds by the costs; rows without a draft repeat others and cost next to nothing."""
        rows = round(num_sequences * (1 + shares[plan.shortest] * (plan.width - 1)))
        return self._costs.seconds_of(rows, context)


def _log_odds(chance: FloatArray | float) -> FloatArray:
    sure = np.clip(chance, 1.0 - _SURE, _SURE)
    return np.log(sure / (1.0 - sure))


def _chance(log_odds: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + np.exp(-log_odds))
