"""What a round is told: who enters a slot, and of the turns a plan with as many nodes as there are pages for."""

from collections.abc import Sequence as SequenceOf

import numpy as np

from specdec.arrays import IntArray
from specdec.draft.planner import Planner
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import Sequence, Turn
from specdec.round.plan import MOST_MARKS, RoundPlan
from specdec.round.slots import Occupant


def occupant_of(sequence: Sequence, mark: int | None) -> Occupant:
    """A sequence as it enters its slot. mark: of its cached prefix, see `specdec.cache.kinds.CacheKind.enter`."""
    return Occupant(
        tokens=sequence.tokens,
        num_prompt_tokens=sequence.num_prompt_tokens,
        sampling=sequence.sampling,
        stop_ids=sequence.stop_ids,
        pages=sequence.pages,
        position=sequence.num_cached,
        mark=mark,
        prediction_ids=sequence.request.prediction_ids,
    )


def allowed_of(sequence: Sequence, names: SequenceOf[str]) -> int:
    """Bits of the drafters that a sequence may use."""
    wanted = sequence.request.speculation.drafter
    return sum(1 << bit for bit, name in enumerate(names) if wanted in (None, name))


def plan_round(turns: SequenceOf[Turn], planner: Planner, scheduler: Scheduler, context: int) -> RoundPlan:
    """Speculation never takes a page from another sequence, and the scheduler has seen to the roots.

    Args:
        turns: at least one.
        planner: says what pays.
        scheduler: gives pages.
        context: tokens of the longest sequence.
    """
    slots = np.array([turn.sequence.slot for turn in turns], np.int64)
    most = np.array([turn.most_nodes for turn in turns], np.int64)
    chunks = np.array([turn.chunk for turn in turns], np.int64)
    budgets = planner.plan(slots, most, int(chunks.sum()), context)
    nodes = budgets.nodes
    for index in np.flatnonzero(nodes > 1).tolist():
        nodes[index] = _fit(turns[index].sequence, int(nodes[index]), scheduler)
    marks, mark_slots = _marks(turns)
    return RoundPlan(
        slots=slots,
        firsts=np.array([turn.first for turn in turns], np.int64),
        chunks=chunks,
        nodes=nodes,
        pages=max([len(turn.sequence.pages) for turn in turns]),
        odds=budgets.odds,
        least=budgets.least,
        drafting=budgets.drafting,
        marks=marks,
        mark_slots=mark_slots,
    )


def _fit(sequence: Sequence, nodes: int, scheduler: Scheduler) -> int:
    """As many of the nodes as there are pages for."""
    if scheduler.grow(sequence, sequence.most_tokens + nodes - 1):
        return nodes
    return len(sequence.pages) * scheduler.page_size - sequence.most_tokens + 1


def _marks(turns: SequenceOf[Turn]) -> tuple[IntArray, IntArray] | tuple[None, None]:
    """Where states are to be kept, as `RoundPlan` says it."""
    if not any(turn.marks for turn in turns):
        return None, None
    marks, slots = np.full((2, len(turns), MOST_MARKS), -1, np.int64)
    for index, turn in enumerate(turns):
        for place, (position, slot) in enumerate(turn.marks):
            marks[index, place], slots[index, place] = position, slot
    return marks, slots
