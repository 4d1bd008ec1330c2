"""What a round told the host, as numpy arrays.

Legend of shape suffixes: M members of a round, N nodes of a tree, D depths (= N), T tree rows, K most likely tokens.
"""

from dataclasses import dataclass

import numpy as np

from specdec.arrays import BoolArray, FloatArray, IntArray
from specdec.kernels.commit import KIND_BITS, SURE, Told, told_width
from specdec.round.plan import RoundPlan, RoundShape

_NO_NODES = np.zeros((0, 0), np.int64)


@dataclass(frozen=True, slots=True)
class Scores:
    """Log probabilities by tree row, or by prompt row. own_T: of the token emitted there, or that follows there. ranks_T: how
    many tokens are likelier, and one. tokens_TK, logs_TK: the most likely ones. firsts_M: the first row of each member."""

    own_T: FloatArray
    ranks_T: IntArray
    tokens_TK: IntArray
    logs_TK: FloatArray
    firsts_M: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The outcome of one round; entries of members without a tree are void.

    accepted: drafts kept. sound: False where the round is void for a member, whose slot is as it was. drafted: drafts verified.
    offers: kind of the likeliest candidate below the root, chosen or not; -1 for none. offered: whether it was right.
    emitted: the accepted drafts, then the target's own token. paths: nodes of the kept path. kinds, parents: of each node, -1
    behind the last and, for kinds, at the root; survivals: float64 [M, O], how likely the best candidates survive, see
    `specdec.kernels.tree_select.Trees`. These four are empty where no drafter ran. shape: of the round, as it
    ran. seconds: what the round took the device; None where that says nothing about others of its kind. drafting_seconds: what
    drafting took of that, where it is known. chunks_sound: whether the prompt rows of each member are finite; None where there
    are none.
    """

    plan: RoundPlan
    accepted: IntArray
    sound: BoolArray
    drafted: IntArray
    offers: IntArray
    offered: BoolArray
    emitted: IntArray
    paths: IntArray
    kinds: IntArray
    parents: IntArray
    survivals: FloatArray
    shape: RoundShape
    seconds: float | None
    scores: Scores | None = None
    prompt_scores: Scores | None = None
    drafting_seconds: float | None = None
    chunks_sound: BoolArray | None = None

    @staticmethod
    def read(
        told: IntArray,
        plan: RoundPlan,
        shape: RoundShape,
        seconds: float | None,
        scores: Scores | None,
        drafting_seconds: float | None = None,
        prompt_scores: Scores | None = None,
        chunks_sound: BoolArray | None = None,
    ) -> "Outcome":
        """From what `specdec.kernels.commit` tells, int64 [members or more, columns], which this may go on using."""
        num_nodes = shape.nodes
        columns, ends = told[: len(plan)], len(Told) + num_nodes
        paths = nodes = _NO_NODES
        survivals = np.zeros((len(plan), 0))
        if shape.drafting:
            nodes_end = ends + 2 * num_nodes
            paths, nodes = columns[:, ends : ends + num_nodes], columns[:, ends + num_nodes : nodes_end]
            survivals = columns[:, nodes_end:] / SURE
        known = nodes >= 0
        return Outcome(
            plan=plan,
            accepted=columns[:, Told.ACCEPTED],
            sound=columns[:, Told.SOUND] != 0,
            drafted=columns[:, Told.DRAFTED],
            offers=columns[:, Told.OFFER],
            offered=columns[:, Told.OFFERED] != 0,
            emitted=columns[:, len(Told) : ends],
            paths=paths,
            kinds=np.where(known, nodes & ((1 << KIND_BITS) - 1), -1),
            parents=np.where(known, nodes >> KIND_BITS, -1),
            survivals=survivals,
            shape=shape,
            seconds=seconds,
            scores=scores,
            prompt_scores=prompt_scores,
            drafting_seconds=drafting_seconds,
            chunks_sound=chunks_sound,
        )


def outcome_width(num_nodes: int, drafting: bool) -> int:
    """Integers of one member."""
    return told_width(num_nodes, drafting)
