"""Recursive rejection sampling without replacement on trees; chains of sampled drafts go to block verification.

At a node with target distribution p the children are tried in the order of their rows. A child x that was drawn from q is
kept with probability min(1, p(x) / q(x)); else p becomes max(p - q, 0), normalised, and q loses x. A fixed child is one drawn
from the one-hot q. When no child is left, the token is drawn from what p has become.

The output has the target's distribution; it is not the target's own output for a seed. Exact provided that
- the shape of a tree does not depend on tokens that were sampled for it, and
- sampled children were drawn with noise of their own (`Domain.DRAFT`), not the target's, that no earlier round has read.
Block verification looks at drafts and draws beyond what it keeps. So noise of a round must not come back in the next one: the
uniforms are keyed by the position of the tree's root, and drafters key theirs by it too (`noise.in_round`).

Sources: Leviathan et al. 2023 (one draft), Miao et al. 2024 (several), Chen et al. 2024 (without replacement).
Shape suffixes: S sequences, T tree rows, V vocabulary, K children of a node, D depths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.round.accept.base import Accepted
from specdec.round.accept.block import verify_chain
from specdec.round.accept.residual import acceptance_probability, drawn_from, residual, without
from specdec.round.batch import TreeRows
from specdec.round.sample.candidates import Keys, race
from specdec.round.sample.noise import Domain, uniform
from specdec.round.sample.sampling import SamplingBatch, probabilities


class Rejection:
    """The family of rejection rules: the best one for each tree."""

    name = "rejection"
    per_seed = False

    def accept(
        self, tree: TreeRows, logits_TV: Tensor, sampling: SamplingBatch, q: Sequence[Tensor | None] | None = None
    ) -> Accepted:
        """See `AcceptanceRule.accept`."""
        p_TV = probabilities(tree, logits_TV, sampling)
        drawn = [one is not None for one in q] if q is not None else [False] * tree.num_sequences
        q_TV = _stack_q(tree, p_TV, q)
        children_TK = _children(tree)
        lengths_S = torch.bincount(tree.sequences_T, minlength=tree.num_sequences) - 1
        deepest_S = torch.zeros_like(lengths_S).scatter_reduce(0, tree.sequences_T, tree.depths_T, "amax")
        by_block_S = (deepest_S == lengths_S) & torch.tensor(drawn, device=p_TV.device)
        results: list[tuple[Tensor, Tensor, Tensor]] = []
        if not bool(by_block_S.all()):
            uniforms_SDK = _uniforms(tree, sampling, children_TK.shape[1])
            results.append(walk(tree, p_TV, q_TV, uniforms_SDK, children_TK))
        if bool(by_block_S.any()):
            results.append(verify_chain(tree, p_TV, q_TV, _uniforms(tree, sampling, 1)[..., 0], lengths_S))
        kept_S, last_S, weights_SV = (_choose(by_block_S, *pair) for pair in zip(*results, strict=True))
        keys = Keys(seeds_N=sampling.seeds_S, positions_N=tree.positions_T[last_S] + 1, domain=Domain.RESIDUAL)
        own_S1 = race(weights_SV.log().float(), keys)[1]
        return _emit(tree, kept_S, last_S, own_S1)


def walk(
    tree: TreeRows, p_TV: Tensor, q_TV: Tensor, uniforms_SDK: Tensor, children_TK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Recursive rejection, level by level.

    Args:
        tree: the trees.
        p_TV: float64, the target's distributions.
        q_TV: float64, the distributions that the rows' children were drawn from; zero where they are a fixed choice.
        uniforms_SDK: float64, one draw per level and child.
        children_TK: int64, rows of the children in the order they are tried, -1 for none.

    Returns:
        int64 [S] kept drafts, int64 [S] the last kept row, float64 [S, V] weights of the token that follows it.
    """
    tokens_V = torch.arange(p_TV.shape[1], device=p_TV.device)
    node_S = tree.roots_S
    walking_S = torch.ones_like(node_S, dtype=torch.bool)
    weights_SV = p_TV[node_S]
    for level in range(uniforms_SDK.shape[1]):
        p_SV, q_SV, children_SK = p_TV[node_S], q_TV[node_S], children_TK[node_S]
        trying_S = walking_S
        for place in range(children_SK.shape[1]):
            child_S = children_SK[:, place]
            trying_S = trying_S & (child_S >= 0)
            x_SV = (tokens_V == tree.tokens_T[child_S, None]).to(p_SV)
            from_SV = drawn_from(q_SV, x_SV)
            keeps_S = trying_S & (uniforms_SDK[:, level, place] < acceptance_probability(p_SV, from_SV, x_SV))
            node_S = torch.where(keeps_S, child_S, node_S)
            trying_S = trying_S & ~keeps_S
            p_SV = torch.where(trying_S[:, None], residual(p_SV, from_SV), p_SV)
            q_SV = without(q_SV, x_SV)
        moved_S = tree.depths_T[node_S] > level
        weights_SV = torch.where((walking_S & ~moved_S)[:, None], p_SV, weights_SV)
        walking_S = walking_S & moved_S
    return tree.depths_T[node_S], node_S, weights_SV


def _stack_q(tree: TreeRows, p_TV: Tensor, q: Sequence[Tensor | None] | None) -> Tensor:
    q_TV = torch.zeros_like(p_TV)
    for start, one in zip(tree.roots_S.tolist(), q or (), strict=False):
        if one is not None:
            q_TV[start : start + len(one)] = one.to(p_TV)
    return q_TV


def _children(tree: TreeRows) -> Tensor:
    """Rows of each row's children in their own order, int64 [T, K], -1 for none."""
    num_rows = len(tree.tokens_T)
    order_T = torch.where(tree.depths_T == 0, num_rows, tree.parents_T).sort(stable=True)
    places_T = torch.arange(num_rows, device=order_T.values.device) - torch.searchsorted(order_T.values, order_T.values)
    is_child_T = order_T.values < num_rows
    places_C = places_T[is_child_T]
    width = int(places_C.max()) + 1 if len(places_C) else 0
    children_TK = torch.full((num_rows, width), -1, device=places_C.device)
    children_TK[order_T.values[is_child_T], places_C] = order_T.indices[is_child_T]
    return children_TK


def _uniforms(tree: TreeRows, sampling: SamplingBatch, width: int) -> Tensor:
    """One uniform per sequence, depth and child, float64 [S, D, width]."""
    num_depths = tree.ancestors_TD.shape[1]
    depths_D1 = torch.arange(num_depths, device=tree.tokens_T.device)[:, None]
    draws_C = (depths_D1 << 16 | torch.arange(width, device=tree.tokens_T.device)).flatten()
    draws_SC = draws_C.expand(tree.num_sequences, -1)
    return uniform(sampling.seeds_S, tree.positions_T[tree.roots_S], draws_SC).view(tree.num_sequences, num_depths, width)


def _choose(by_block_S: Tensor, first: Tensor, *others: Tensor) -> Tensor:
    """The tree rule's result and block verification's, each for its own sequences, or the only one of them."""
    for by_block in others:
        return torch.where(by_block_S if first.ndim == 1 else by_block_S[:, None], by_block, first)
    return first


def _emit(tree: TreeRows, kept_S: Tensor, last_S: Tensor, own_S1: Tensor) -> Accepted:
    """The kept drafts, then the rule's own token."""
    path_SD = tree.ancestors_TD[last_S]
    depths_D = torch.arange(path_SD.shape[1], device=path_SD.device)
    drafts_SD = tree.tokens_T[path_SD].roll(-1, dims=1).masked_fill(depths_D >= kept_S[:, None], -1)
    return Accepted(num_accepted_S=kept_S, path_SD=path_SD, emitted_SD=drafts_SD.scatter(1, kept_S[:, None], own_S1))
