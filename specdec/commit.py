"""The end of a round: the outcome read back, accepted keys and values put where their positions lie."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from specdec.acceptance.base import Accepted
from specdec.batch import RowSpec, TreeRows, spine_length
from specdec.cache.pool import KVPool
from specdec.tree import IntArray


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


def read_outcomes(accepted: Accepted, tree: TreeRows) -> list[Outcome]:
    """Bring the decision to the host."""
    counts = (accepted.num_accepted_S + 1).tolist()
    paths, emitted, roots = accepted.path_SD.cpu().numpy(), accepted.emitted_SD.tolist(), tree.roots_S.tolist()
    return [
        Outcome(paths[i, :count] - root, paths[i, :count], emitted[i][:count])
        for i, (count, root) in enumerate(zip(counts, roots, strict=True))
    ]


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
