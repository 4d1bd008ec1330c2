"""Room for the trees of a round: pages for their depth, scratch slots for what lies off the spine."""

from collections.abc import Sequence as SequenceOf

import numpy as np

from specdec.arrays import IntArray
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import Sequence, Turn
from specdec.round.batch import RowSpec, spine_length
from specdec.speculation import Draft

NO_TOKENS = np.zeros(0, np.int64)


def fit(sequence: Sequence, draft: Draft, scheduler: Scheduler, num_scratch: int) -> Draft:
    """The part of the draft that there is room for. Speculation never takes a page from another sequence.

    The scheduler has seen to the root's own page.
    """
    if len(draft.tree) == 1:
        return draft
    depths = draft.tree.depths()
    deepest = int(depths.max())
    while deepest > 0 and not scheduler.grow(sequence, len(sequence.tokens) + deepest):
        deepest = len(sequence.pages) * scheduler.page_size - len(sequence.tokens)
    keep = depths <= deepest
    spine = spine_length(draft.tree)
    if len(draft.tree) - spine > num_scratch:
        keep &= np.arange(len(draft.tree)) < spine
    return draft.cut(keep)


def lay_out(
    turns: SequenceOf[Turn], drafts: SequenceOf[Draft], scheduler: Scheduler, scratch: IntArray
) -> tuple[list[RowSpec], list[Draft]]:
    """One RowSpec per turn, and the drafts as they fit.

    Args:
        turns: of the round.
        drafts: one for each turn that has a tree, in their order.
        scheduler: owner of the pages.
        scratch: KV slots that belong to no sequence.
    """
    specs, fitted, used = [], [], 0
    waiting = iter(drafts)
    for turn in turns:
        sequence, tree, slots = turn.sequence, None, NO_TOKENS
        if turn.has_tree:
            draft = fit(sequence, next(waiting), scheduler, len(scratch) - used)
            tree = draft.tree
            off_spine = len(tree) - spine_length(tree)
            slots = scratch[used : used + off_spine]
            used += off_spine
            fitted.append(draft)
        first = sequence.num_cached
        specs.append(
            RowSpec(
                chunk=np.asarray(sequence.tokens[first : first + turn.num_chunk], np.int64),
                tree=tree,
                num_cached=first,
                pages=np.asarray(sequence.pages, np.int64),
                scratch=slots,
            )
        )
    return specs, fitted
