"""The choice of nodes for a CPU, tree by tree in plain Python: next to a small model the reference's many small tensors take
longer than the choice.

See the package for the legend.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.kernels.tree_select.reference import FAINTEST, OFFERED, SUREST

if TYPE_CHECKING:
    from specdec.kernels.tree_select import Candidates


class _Path(NamedTuple):
    """A candidate's path from the root. owner: the first candidate that has it."""

    survival: float
    depth: int
    owner: int


def select_trees_host(
    candidates: "Candidates",
    chances_K: Tensor,
    odds_M: Tensor,
    nodes_M: Tensor,
    least_1: Tensor,
    num_nodes: int,
    max_depth: int,
    shared: bool,
) -> tuple[Tensor, ...]:
    """As `specdec.kernels.tree_select.select_trees`, for tensors on the CPU; the fields of `Trees`. Survivals are products in
    double precision."""
    members = len(nodes_M)
    nodes_FMN = np.full((3, members, num_nodes), -1, np.int64)
    nodes_FMN[1] = 0
    counts_M, offers_M = np.zeros((2, members), np.int64)
    survivals_MO = np.zeros((members, OFFERED), np.float32)
    chances, least = chances_K.numpy(), max(float(least_1), FAINTEST)
    for m, (odds, most) in enumerate(zip(odds_M.tolist(), nodes_M.tolist(), strict=True)):
        tokens, parents, kinds_C = (
            values[m].numpy() for values in (candidates.tokens_MC, candidates.parents_MC, candidates.kinds_MC)
        )
        there = np.flatnonzero(tokens >= 0).tolist()
        odds_U = chances[kinds_C[there]].astype(np.float64)
        odds_U = odds * odds_U / (odds * odds_U + (1.0 - odds_U))
        likely = dict(zip(there, np.minimum(odds_U, SUREST).tolist(), strict=True))
        tokens, parents = tokens.tolist(), parents.tolist()
        paths, survivals = _paths(tokens, parents, likely, least, max_depth, shared)
        best = sorted(survivals, key=lambda candidate: (-survivals[candidate], candidate))
        told = [survivals[candidate] for candidate in best[:OFFERED]]
        survivals_MO[m, : len(told)] = told
        chosen = sorted(best[: max(most - 1, 0)])
        node_of = {candidate: node for node, candidate in enumerate(chosen, 1)}
        above = [node_of[paths[parents[candidate]].owner] if parents[candidate] >= 0 else 0 for candidate in chosen]
        nodes_FMN[:, m, 1 : len(chosen) + 1] = [tokens[candidate] for candidate in chosen], above, chosen
        counts_M[m] = len(chosen)
        below = [candidate for candidate in there if parents[candidate] < 0]
        offers_M[m] = max(below, key=lambda candidate: (likely[candidate], -candidate), default=-1)
    return tuple(map(torch.from_numpy, (*nodes_FMN, counts_M, offers_M, survivals_MO)))


def _paths(
    tokens: list[int], parents: list[int], likely: dict[int, float], least: float, max_depth: int, shared: bool
) -> tuple[dict[int, _Path], dict[int, float]]:
    """The paths that are not dropped, by candidate, and the best survival of each by its owner.

    likely: the chance of each candidate that there is. shared: see `select_trees`; otherwise every candidate owns its path.
    """
    root = _Path(1.0, 0, -1)
    paths: dict[int, _Path] = {}
    owners: dict[tuple[int, int], int] = {}
    survivals: dict[int, float] = {}
    for candidate, chance in likely.items():
        above = paths.get(parents[candidate]) if parents[candidate] >= 0 else root
        if above is None:
            continue
        survival, depth = above.survival * chance, above.depth + 1
        if survival < least or depth > max_depth:
            continue
        owner = owners.setdefault((above.owner, tokens[candidate]), candidate) if shared else candidate
        paths[candidate] = _Path(survival, depth, owner)
        survivals[owner] = max(survivals.get(owner, 0.0), survival)
    return paths, survivals
