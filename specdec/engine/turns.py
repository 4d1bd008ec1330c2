"""What the device is told of sequences and their turns."""

from collections.abc import Sequence as SequenceOf

import numpy as np

from specdec.arrays import IntArray
from specdec.engine.sequence import Sequence, Turn
from specdec.round.plan import MOST_MARKS
from specdec.round.slots import Occupant


def occupant_of(sequence: Sequence, mark: int | None) -> Occupant:
    """A sequence as it enters its slot. mark: see `CacheKind.enter`."""
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


def marks_of(turns: SequenceOf[Turn]) -> tuple[IntArray, IntArray] | tuple[None, None]:
    """Where states are to be kept, as `RoundPlan` says it."""
    if not any(turn.marks for turn in turns):
        return None, None
    marks, slots = np.full((2, len(turns), MOST_MARKS), -1, np.int64)
    for index, turn in enumerate(turns):
        for place, (position, slot) in enumerate(turn.marks):
            marks[index, place], slots[index, place] = position, slot
    return marks, slots
