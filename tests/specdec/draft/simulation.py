"""A planner in a simulated engine: known costs, known acceptance."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from specdec.arrays import IntArray
from specdec.draft.planner import Budgets, Planner, Seen
from specdec.kernels.tree_select import OFFERED

Cost = Callable[[int], float]
BUCKETS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128])
NODES = 32


def cpu_like(rows: int) -> float:
    return 0.0135 + 0.0004 * rows


def steep(rows: int) -> float:
    return 0.004 + 0.010 * rows


def flat(rows: int) -> float:
    return 0.010 + 0.00002 * rows


def dear(rows: int) -> float:
    """A row more costs as much as a round of its own."""
    return 0.010 * rows


def make_planner(cost: Cost, slots: int = 1, prior: float = 0.5, buckets: bool = False, adaptive: bool = True) -> Planner:
    planner = Planner(
        np.full(2, prior),
        num_slots=slots,
        max_nodes=NODES,
        max_rows=128,
        adaptive=adaptive,
        row_buckets=BUCKETS if buckets else None,
    )
    for rows in BUCKETS[BUCKETS <= 64].tolist():
        planner.costs.observe(rows, rows, 512, cost(rows))
    for slot in range(slots):
        planner.enter(slot, 0.0)
    return planner


@dataclass
class Engine:
    """Sequences whose drafters offer chains, each token of them right with a chance of its sequence's."""

    planner: Planner
    cost: Cost
    chances: list[float]
    drafting: float = 0.0
    buckets: bool = False
    host: tuple[float, float] = (0.0, 0.0)  # seconds of a round without and with drafters, beside the device's
    tokens: int = 0
    seconds: float = 0.0
    drafted: list[IntArray] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.learned = np.full(2, 0.5)
        if self.drafting:
            self.planner.costs.observe_drafting(1, self.drafting)

    def run(self, rounds: int) -> "Engine":
        for _ in range(rounds):
            self.round()
        return self

    def round(self) -> Budgets:
        members = len(self.chances)
        budgets = self.planner.plan(np.arange(members), np.full(members, NODES), 0, 512)
        if (chances := self.planner.new_chances()) is not None:
            self.learned = chances
        right = self.rng.random((members, NODES - 1)) < np.array(self.chances)[:, None]
        counts = np.zeros(members, np.int64)
        if budgets.drafting:
            counts = self.observe(budgets, right)
        accepted = np.minimum(right.cumprod(1).sum(1), counts)
        rows = int(counts.sum()) + members
        spent = self.cost(self.rows(rows, int(budgets.nodes.sum()))) * self.rng.uniform(0.97, 1.03)
        spent += self.drafting * budgets.drafting
        drafted_for = members if budgets.drafting else 0
        self.planner.costs.observe(self.rows(rows, int(budgets.nodes.sum())), rows, 512, spent, drafted_for)
        if any(self.host):
            self.planner.costs.observe_host(members, budgets.drafting, self.host[budgets.drafting])
            spent = max(spent, self.host[budgets.drafting])
        self.tokens += int(accepted.sum()) + members
        self.seconds += spent
        self.drafted.append(counts)
        return budgets

    def rows(self, drafted: int, planned: int) -> int:
        """That are computed: as many as were drafted, or whole buckets of those that were planned."""
        return int(BUCKETS[np.searchsorted(BUCKETS, planned)]) if self.buckets else drafted

    def observe(self, budgets: Budgets, right: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> IntArray:
        """What the device drafts within a budget, and what becomes of it."""
        members, size = right.shape[0], NODES
        odds = budgets.odds * self.learned[0]
        chance = odds / (odds + 1.0 - self.learned[0])
        survivals = chance[:, None] ** np.arange(1, OFFERED + 1)
        counts: IntArray = np.minimum((survivals >= budgets.least).sum(1), np.maximum(budgets.nodes - 1, 0))
        nodes = np.arange(size)
        accepted = np.minimum(right.cumprod(1).sum(1), counts)
        self.planner.observe(
            Seen(
                slots=np.arange(members),
                accepted=accepted,
                drafted=counts,
                offers=np.zeros(members, np.int64),
                offered=right[:, 0],
                paths=np.minimum(nodes, accepted[:, None]),
                kinds=np.where((nodes > 0) & (nodes <= counts[:, None]), 0, -1),
                parents=np.where((nodes > 0) & (nodes <= counts[:, None]), nodes - 1, -1),
                survivals=np.where(survivals >= budgets.least, survivals, 0.0),
            )
        )
        return counts

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds
