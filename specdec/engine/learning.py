"""What the planner learns from a round."""

import numpy as np

from specdec.arrays import BoolArray
from specdec.draft.planner import Planner, Seen
from specdec.round.outcome import Outcome


def learn(planner: Planner, outcome: Outcome, present: BoolArray, context: int) -> None:
    """What a round took, and what became of its drafts.

    Args:
        planner: is told.
        outcome: of the round.
        present: bool [M], which of its members have not left their slots since.
        context: tokens of the longest sequence.
    """
    plan, shape, costs = outcome.plan, outcome.shape, planner.costs
    members = len(plan)
    if outcome.drafting_seconds is not None:
        costs.observe_drafting(members, outcome.drafting_seconds)
    if outcome.seconds is not None:
        distinct = plan.num_chunk + plan.num_trees + int(outcome.drafted.sum())
        rows = max(shape.chunk + shape.trees, distinct)
        verifies = plan.num_chunk > 0 or plan.num_nodes > plan.num_trees
        if shape.drafting and not verifies and outcome.drafting_seconds is None:
            # such rounds differ in nothing else from those without drafters
            usual = float(costs.seconds(np.array([rows]), np.array([distinct]), context)[0])
            costs.observe_drafting(members, outcome.seconds - usual)
        else:
            costs.observe(rows, distinct, context, outcome.seconds, members if shape.drafting else 0)
    if shape.drafting:
        chosen = present & outcome.sound & (plan.nodes > 0)
        seen = Seen(
            slots=plan.slots,
            accepted=outcome.accepted,
            drafted=outcome.drafted,
            offers=outcome.offers,
            offered=outcome.offered,
            paths=outcome.paths,
            kinds=outcome.kinds,
            parents=outcome.parents,
            survivals=outcome.survivals,
        )
        planner.observe(seen if chosen.all() else Seen._make(column[chosen] for column in seen))
