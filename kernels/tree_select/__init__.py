"""From candidates to draft trees: the likeliest nodes that a budget has room for, shared paths kept once.

Legend of shape suffixes: M trees, C candidates of each, N nodes of a tree (the root counted), K kinds of candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.linear import uses_triton
from specdec.kernels.tree_select.host import select_trees_host
from specdec.kernels.tree_select.reference import OFFERED

__all__ = ["MAX_NODES", "OFFERED", "Candidates", "Trees", "select_trees"]

MAX_NODES = 64  # of a tree: a path is a set of nodes in the bits of one int64


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may become nodes. All of one shape, and any may be expanded along M.

    tokens_MC: int64, negative where there is no candidate. parents_MC: int64, the candidate above, -1 for the root; always an
    earlier one. kinds_MC: int64, what each is like, for the chance that it is right given that all above it are.
    """

    tokens_MC: Tensor
    parents_MC: Tensor
    kinds_MC: Tensor


@dataclass(frozen=True, slots=True)
class Trees:
    """Chosen nodes, int64 where no type is said. Node 0 is the root, parents come before children, a leading run of nodes is
    the spine.

    tokens_MN: -1 at the root and behind the last node. parents_MN: 0 there. picks_MN: the candidate that a node was, -1 there.
    counts_M: drafts, the root not counted. offers_M: the likeliest candidate right below the root, chosen or not; -1 for none.
    survivals_MO: float32, how likely the best OFFERED candidates that are not dropped survive, likeliest first, whether there
    is room for them or not; 0 behind the last.
    """

    tokens_MN: Tensor
    parents_MN: Tensor
    picks_MN: Tensor
    counts_M: Tensor
    offers_M: Tensor
    survivals_MO: Tensor


def select_trees(
    candidates: Candidates,
    chances_K: Tensor,
    odds_M: Tensor,
    nodes_M: Tensor,
    least_1: Tensor,
    *,
    num_nodes: int,
    max_depth: int,
    shared: bool,
) -> Trees:
    """Keep the candidates that are the likeliest to be accepted.

    A candidate survives with the product of the chances along its path, none of which counts as certain. Equal paths are one
    node, with the best survival among them. Equal survivals go to the earlier candidate; so what is kept is closed under
    parents.

    Args:
        candidates: parents first.
        chances_K: float32, of each kind.
        odds_M: float32, what the odds of every chance are multiplied with.
        nodes_M: int64, nodes that each tree may have, the root counted; 0 counts as 1.
        least_1: float32, candidates that survive less likely are dropped.
        num_nodes: N, the most of all trees, at most MAX_NODES.
        max_depth: nodes below it are dropped.
        shared: whether two candidates may have the same path.
    """
    assert 1 <= num_nodes <= MAX_NODES, num_nodes
    assert candidates.tokens_MC.dtype == torch.int64, candidates.tokens_MC.dtype
    shapes = {candidates.tokens_MC.shape, candidates.parents_MC.shape, candidates.kinds_MC.shape}
    assert len(shapes) == 1, shapes
    inputs = (candidates, chances_K, odds_M, nodes_M, least_1)
    shape = (num_nodes, max_depth, shared)
    if uses_triton(candidates.tokens_MC.device):
        from specdec.kernels.tree_select.kernel import select_trees_triton

        return Trees(*select_trees_triton(*inputs, *shape))
    return Trees(*select_trees_host(*inputs, *shape))
