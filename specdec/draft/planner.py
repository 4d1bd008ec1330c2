"""How much of the drafts to verify: the most expected tokens per second, and never a losing streak.

Two rules decide. *Value*: of all proposed nodes the likeliest are kept, as many as make expected tokens / cost largest; none
is a legal answer. *Credit*: each request may lose a bounded number of plain tokens' time to drafts that fail. It starts
with a little, earns a small share of every round and whatever its drafts win, and pays for rows and drafting. So a wrong
estimate costs little, and a request that found nothing to copy still looks again now and then.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdec.arrays import BoolArray, FloatArray, IntArray
from specdec.draft.calibration import Calibration, RequestRecord
from specdec.draft.cost import CostTable, context_bucket
from specdec.draft.tree import DraftTree

_FIRST_CREDIT = 2.5  # tokens: the time of as many plain steps
_EARNED_CREDIT = 0.01  # tokens per round: what speculation may cost where it never works
_MAX_CREDIT = 16.0
_PROBE_ROUNDS = 64  # without a verified draft, then a few are tried against the estimate
_PROBE_NODES = 3
_SMOOTHING = 0.1


@dataclass(slots=True)
class _Request:
    record: RequestRecord
    credit: float = _FIRST_CREDIT
    owed: float = 0.0  # tokens: what this round's rows and drafting cost beyond a plain step
    asked: bool = False  # drafters were asked this round
    idle_rounds: int = 0


class Planner:
    """Cuts the proposed trees to what pays. Deterministic in what it is told.

    Args:
        drafters: their names, in the order that `DraftTree.sources` counts.
        max_nodes: of one tree, the root counted.
        adaptive: False keeps everything.
        shape_only: see `Calibration`.
    """

    def __init__(self, drafters: Sequence[str], max_nodes: int, adaptive: bool = True, shape_only: bool = False) -> None:
        self._num_drafters = len(drafters)
        self._max_nodes = max_nodes
        self._adaptive = adaptive
        self.costs = CostTable()
        self._known_prices: dict[tuple[int, ...], tuple[FloatArray, float]] = {}  # of this round, by what they depend on
        self._calibration = Calibration(len(drafters), shape_only)
        self._requests: dict[str, _Request] = {}
        self._draft_seconds = np.zeros(len(drafters))  # of one sequence, running mean
        self._drafting = 0.0  # seconds of this round
        self._net = 0.0  # tokens won per asked request and round, all costs paid, running mean

    def start(self, request_id: str) -> None:
        """A request is admitted."""
        self._requests[request_id] = _Request(RequestRecord(self._num_drafters))

    def release(self, request_id: str) -> None:
        """A request is over."""
        self._requests.pop(request_id, None)

    def budget(self, request_id: str, num_sequences: int, context: int) -> int:
        """Nodes worth asking the drafters for, the root counted; 1: do not ask.

        Args:
            request_id: whose.
            num_sequences: that decode this round.
            context: tokens of the longest one.
        """
        if not self._adaptive:
            return self._max_nodes
        request = self._requests[request_id]
        extra, plain = self._prices(self._max_nodes - 1, num_sequences, 0, context)
        purse = request.credit * plain / num_sequences
        if self._net < 0:  # drafting as such has not paid lately: it must be affordable too
            purse -= float(self._draft_seconds.sum())
        nodes = int(np.searchsorted(extra, purse, side="right")) if purse > 0 else 1
        request.asked = nodes > 1
        return nodes

    def plan(self, requests: Sequence[str], trees: Sequence[DraftTree], fixed_rows: int, context: int) -> list[BoolArray]:
        """Which nodes to verify, per tree: bool [n], closed under parents, the root always kept.

        Args:
            requests: whose trees.
            trees: what was proposed; a single root where nothing was.
            fixed_rows: prompt rows that the round computes anyway.
            context: tokens of the longest sequence.
        """
        if not self._adaptive:
            return [np.ones(len(tree), np.bool_) for tree in trees]
        states = [self._requests[request] for request in requests]
        extra, plain = self._prices(sum(map(len, trees)) - len(trees), len(trees), fixed_rows, context)
        token = plain / len(trees)
        orders, chances = [], []
        for state, tree in zip(states, trees, strict=True):
            survival = self._calibration.survival(tree, state.record) if len(tree) > 1 else np.ones(1)
            affordable = max(int(np.searchsorted(extra, state.credit * token, side="right")) - 1, 0)
            orders.append(np.argsort(-survival[1:], kind="stable")[:affordable] + 1)
            chances.append(survival[orders[-1]])
        numbers = _best(chances, extra, plain + self._drafting)
        keeps = []
        for state, tree, order, number in zip(states, trees, orders, numbers, strict=True):
            if number == 0 and state.idle_rounds >= _PROBE_ROUNDS:
                number = min(len(order), _PROBE_NODES)
            keep = np.zeros(len(tree), np.bool_)
            keep[0] = True
            keep[order[:number]] = True
            keeps.append(keep)
        self._bill(states, [int(keep.sum()) - 1 for keep in keeps], extra, token)
        return keeps

    def _prices(self, num_nodes: int, num_sequences: int, fixed_rows: int, context: int) -> tuple[FloatArray, float]:
        """(float64 [num_nodes + 1]: seconds that so many nodes add to the round, seconds of a plain round)."""
        key = (num_nodes, num_sequences, fixed_rows, context_bucket(context))
        if key not in self._known_prices:
            rows = np.arange(num_nodes + 2)
            rows += fixed_rows + num_sequences - 1
            rows[0] = num_sequences
            seconds = self.costs.seconds(rows, context)
            self._known_prices[key] = seconds[1:] - seconds[1], float(seconds[0])
        return self._known_prices[key]

    def _bill(self, states: Sequence[_Request], kept: Sequence[int], extra: FloatArray, token: float) -> None:
        """Share the cost of the round's drafts among those who caused it."""
        total, asked = sum(kept), sum(state.asked for state in states)
        for state, number in zip(states, kept, strict=True):
            state.owed = extra[total] * number / total / token if total else 0.0
            if state.asked:
                state.owed += self._drafting / asked / token
        self._drafting = 0.0

    def observe(self, request_id: str, tree: DraftTree, accepted: IntArray) -> None:
        """A round is over for a request.

        Args:
            request_id: whose.
            tree: as verified.
            accepted: int64, nodes of the kept path; the root may be among them.
        """
        if not self._adaptive:
            return
        request = self._requests[request_id]
        won = float(np.count_nonzero(accepted)) - request.owed
        request.credit = min(request.credit + won + _EARNED_CREDIT, _MAX_CREDIT)
        request.idle_rounds = 0 if len(tree) > 1 else request.idle_rounds + 1
        if request.asked:
            self._net += _SMOOTHING * (won - self._net)
        request.owed, request.asked = 0.0, False
        if len(tree) > 1:
            self._calibration.observe(tree, accepted, request.record)

    def observe_cost(self, rows: int, context: int, seconds: float) -> None:
        """A round of so many rows, at start-up or in service, took `seconds`."""
        self.costs.observe(rows, context, seconds)
        self._known_prices.clear()

    def observe_draft(self, drafter: int, seconds: float, num_sequences: int) -> None:
        """A drafter was asked about so many sequences and took `seconds`."""
        self._drafting += seconds
        self._draft_seconds[drafter] += _SMOOTHING * (seconds / num_sequences - self._draft_seconds[drafter])


def _best(chances: Sequence[FloatArray], extra: FloatArray, plain: float) -> list[int]:
    """How many nodes of each tree (likeliest first) make expected tokens / seconds largest, fewest where it does not matter.

    Args:
        chances: per tree, float64, descending: probability that a node is accepted.
        extra: float64, seconds that so many nodes add.
        plain: seconds of the round without.
    """
    together = np.concatenate(chances)
    order = np.argsort(-together, kind="stable")
    tokens = len(chances) + np.concatenate(([0.0], np.cumsum(together[order])))
    best = int(np.argmax(tokens / (plain + extra[: len(tokens)])))
    owners = np.repeat(np.arange(len(chances)), [len(c) for c in chances])[order[:best]]
    return [int(number) for number in np.bincount(owners, minlength=len(chances))]
