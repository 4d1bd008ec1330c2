"""The tables of a round on the device, and the shape that it runs as."""

from collections.abc import Callable

import numpy as np
import torch

from specdec.arrays import IntArray
from specdec.round.plan import MOST_TREE_ROWS, PlanTables, RoundPlan, RoundShape, flatten
from specdec.round.stand_ins import StandIns


class Tables:
    """Sends plans to the device, each only where it differs from the one before.

    Args:
        shape_of: the smallest shape that holds a plan.
        fits: whether a larger one does.
        stand_ins: say what it runs as.
        members, chunk: the most of a round, as buckets.
        spare: the slot of members that are padding.
        rounds: that may be underway at once.
        device: where rounds run.
    """

    def __init__(
        self,
        shape_of: Callable[[RoundPlan], RoundShape],
        fits: Callable[[RoundPlan, RoundShape], bool],
        stand_ins: StandIns,
        *,
        members: int,
        chunk: int,
        spare: int,
        rounds: int,
        device: torch.device,
    ) -> None:
        self._shape_of = shape_of
        self._fits = fits
        self.stand_ins = stand_ins
        self._spare = spare
        size = PlanTables.size(members, chunk, MOST_TREE_ROWS)
        pinned = device.type == "cuda"
        self.flat = torch.zeros(size, dtype=torch.int64, device=device)
        self._staged = [torch.zeros(size, dtype=torch.int64, pin_memory=pinned) for _ in range(rounds + 1)]
        self._next = 0  # of `_staged`
        self._key: tuple[object, ...] | None = None  # of the plan whose tables are there
        self._last: tuple[RoundShape, RoundShape, IntArray]  # as it was wanted, as it ran, and the first row of each member

    def forget(self) -> None:
        """The next plan is sent whatever it says: slots have changed."""
        self._key = None

    def put(self, plan: RoundPlan) -> tuple[RoundShape, IntArray]:
        """The shape that a plan runs as, and the first tree row of each member. Its tables are on their way to the device, or
        there already where nothing has changed since the round before."""
        same = plan.key is not None and plan.key == self._key
        if same and self._last[0] is self._last[1]:
            return self._last[1:]
        wanted = self._last[0] if same else self._shape_of(plan)
        shape = self.stand_ins.choose(wanted, lambda larger: self._fits(plan, larger))
        if same and shape == self._last[1]:
            return self._last[1:]
        self.send(plan, shape)
        rows = plan.rows(shape.trees)
        self._key, self._last = plan.key, (wanted, wanted if shape == wanted else shape, np.cumsum(rows) - rows)
        return self._last[1:]

    def send(self, plan: RoundPlan, shape: RoundShape) -> None:
        """A plan's tables in that shape, without waiting for the rounds underway, which read the old ones."""
        flat = flatten(plan, shape.members, shape.chunk, shape.trees, self._spare)
        self._next = (self._next + 1) % len(self._staged)
        staged = self._staged[self._next][: len(flat)]
        staged.numpy()[:] = flat
        self.flat[: len(flat)].copy_(staged, non_blocking=True)
        self._key = None
