"""Rounds as small as what was drafted, for devices that compute when they are told to."""

from dataclasses import replace

import torch

from specdec.kernels.commit import Verified
from specdec.kernels.tree_select import Trees
from specdec.round.plan import PlanTables, RoundShape


def trim(tables: PlanTables, shape: RoundShape, verified: Verified) -> tuple[PlanTables, RoundShape, Verified]:
    """As many rows as there are nodes, for a device that computes when it is told to and knows the counts."""
    layout, trees = tables.layout, verified.trees
    nodes_M = torch.where(layout.nodes_M > 0, trees.counts_M + 1, 0)
    trees_T = torch.repeat_interleave(torch.arange(len(nodes_M), device=nodes_M.device), nodes_M)
    largest = max(int(nodes_M.max()), 1)
    trimmed = replace(layout, nodes_M=nodes_M, firsts_M=nodes_M.cumsum(0) - nodes_M, trees_T=trees_T)
    kept = Trees(
        trees.tokens_MN[:, :largest].contiguous(),
        trees.parents_MN[:, :largest].contiguous(),
        trees.picks_MN[:, :largest].contiguous(),
        trees.counts_M,
        trees.offers_M,
        trees.survivals_MO,
    )
    changed = tables.with_layout(trimmed)
    return changed, shape._replace(nodes=largest, trees=len(trees_T)), Verified(verified.candidates, kept)
