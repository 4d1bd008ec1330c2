"""The end of a round: the outcome read back, accepted keys and values put where their positions lie."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.cache.attention import KVPool
from specdec.round.accept.base import Accepted
from specdec.round.batch import RowSpec, TreeRows, spine_length


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round decided for one sequence.

    path: int64, kept nodes of its tree, root first.
    rows: int64, the same as tree rows of the round.
    emitted: the tokens that follow them.
    """

    path: IntArray
    rows: IntArray
    emitted: list[int]


def read_outcomes(accepted: Accepted, tree: TreeRows, finite_T: Tensor) -> tuple[list[Outcome], set[int]]:
    """Bring the decision to the host, in one transfer.

    Args:
        accepted: what the rule decided.
        tree: the trees.
        finite_T: bool, tree rows whose logits a token can be drawn from.

    Returns:
        One outcome per sequence, and the sequences that have a row which is not finite.
    """
    num_sequences, depths = accepted.path_SD.shape
    finite_S = torch.ones_like(tree.roots_S).scatter_reduce(0, tree.sequences_T, finite_T.long(), "amin")
    parts = (accepted.num_accepted_S, tree.roots_S, finite_S, accepted.path_SD.flatten(), accepted.emitted_SD.flatten())
    told = torch.cat(parts).cpu().numpy()
    accepted_S, roots_S, finite = told[: 3 * num_sequences].reshape(3, num_sequences)
    paths, emitted = told[3 * num_sequences :].reshape(2, num_sequences, depths)
    counts = (accepted_S + 1).tolist()
    outcomes = [
        Outcome(path[:count] - root, path[:count], tokens[:count].tolist())
        for path, tokens, count, root in zip(paths, emitted, counts, roots_S, strict=True)
    ]
    return outcomes, set(np.flatnonzero(finite == 0).tolist())


def commit_kv(pool: KVPool, specs: SequenceOf[RowSpec], outcomes: SequenceOf[Outcome]) -> None:
    """Copy the accepted nodes that lie off their spine from scratch to the slots of their positions.

    Args:
        pool: the pages.
        specs: those sequences of the round that had a tree.
        outcomes: one for each.
    """
    sources, targets = [], []
    for spec, outcome in zip(specs, outcomes, strict=True):
        assert spec.tree is not None, "only sequences with a tree have an outcome"
        spine = spine_length(spec.tree)
        depths = np.flatnonzero(outcome.path >= spine)
        if len(depths):
            positions = spec.num_cached + len(spec.chunk) + depths
            sources.append(spec.scratch[outcome.path[depths] - spine])
            targets.append(spec.pages[positions // pool.page_size] * pool.page_size + positions % pool.page_size)
    if sources:
        device = pool.device
        pool.move(torch.from_numpy(np.concatenate(sources)).to(device), torch.from_numpy(np.concatenate(targets)).to(device))
