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
Shape suffixes: M trees, T tree rows, N nodes, V vocabulary, D depths (= N).
"""

import torch
from torch import Tensor

from specdec.kernels.gumbel import Keys, gumbel_argmax
from specdec.kernels.tree_walk import Accepted
from specdec.round.accept.base import Verification
from specdec.round.accept.block import verify_chains
from specdec.round.accept.residual import acceptance_probability, drawn_from, residual, without
from specdec.round.accept.trees import RuleTrees
from specdec.round.sample.draw import probabilities
from specdec.round.sample.noise import Domain, uniform


class Rejection:
    """The family of rejection rules: the best one for each tree."""

    name = "rejection"
    per_seed = False

    def accept(self, verification: Verification) -> Accepted:
        """See `AcceptanceRule.accept`."""
        trees = RuleTrees.of(verification.rows, verification.layout, verification.verified)
        sampling = verification.sampling
        p_TV, settled_T = probabilities(
            verification.logits_TV, verification.rows, sampling, verification.nucleus, verification.truncated
        )
        q_TV = trees.laws(verification, p_TV)
        uniforms_MN = _uniforms(trees, sampling.keys.seeds_S)
        last_M, weights_MV = walk(trees, p_TV, q_TV, uniforms_MN)
        if verification.laws_MLV is not None:
            by_block_M = trees.chains_M & (q_TV[trees.roots_M].sum(-1) > 0)
            block_last_M, block_weights_MV = verify_chains(trees, p_TV, q_TV, uniforms_MN)
            last_M = torch.where(by_block_M, block_last_M, last_M)
            weights_MV = torch.where(by_block_M[:, None], block_weights_MV, weights_MV)
        texts_M = verification.layout.texts_M
        keys = Keys(sampling.keys.seeds_S, sampling.ones_S, torch.ones_like(sampling.keys.noisy_S))
        positions_M = verification.rows.positions_T[last_M]
        logs_MV = weights_MV.log().float().contiguous()
        own_M, _ = gumbel_argmax(logs_MV, keys, texts_M, positions_M, domain=Domain.RESIDUAL)
        tops_T, likeliest_T = verification.logits_TV.max(dim=-1)
        sound_T = torch.isfinite(tops_T) if settled_T is None else torch.isfinite(tops_T) & settled_T
        return _emit(verification, last_M, own_M, sound_T, likeliest_T)


def walk(trees: RuleTrees, p_TV: Tensor, q_TV: Tensor, uniforms_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Recursive rejection. A node's children come after it and in the order they are tried, so one pass over the nodes walks
    the tree: each is tried where its parent is where the walk stands.

    Args:
        trees: the trees.
        p_TV: float64, the target's distributions.
        q_TV: float64, the distributions that the rows' children were drawn from; zero where they are a fixed choice.
        uniforms_MN: float64, one draw for each node.

    Returns:
        int64 [M] the last kept row, float64 [M, V] weights of the token that follows it.
    """
    tokens_V = torch.arange(p_TV.shape[1], device=p_TV.device)
    at_M = trees.roots_M
    p_MV, q_MV = p_TV[at_M], q_TV[at_M]
    for node in range(1, trees.num_nodes):
        row_M = trees.row(node)
        tries_M = (node <= trees.counts_M) & (trees.parents_T[row_M] == at_M)
        x_MV = (tokens_V == trees.tokens_T[row_M, None]).to(p_MV)
        from_MV = drawn_from(q_MV, x_MV)
        keeps_M = tries_M & (uniforms_MN[:, node] < acceptance_probability(p_MV, from_MV, x_MV))
        drops_M1, keeps_M1 = (tries_M & ~keeps_M)[:, None], keeps_M[:, None]
        p_MV = torch.where(drops_M1, residual(p_MV, from_MV), torch.where(keeps_M1, p_TV[row_M], p_MV))
        q_MV = torch.where(drops_M1, without(q_MV, x_MV), torch.where(keeps_M1, q_TV[row_M], q_MV))
        at_M = torch.where(keeps_M, row_M, at_M)
    return at_M, p_MV


def _uniforms(trees: RuleTrees, seeds_S: Tensor) -> Tensor:
    """One uniform for each node, float64 [M, N], keyed by the root's position."""
    draws_N = torch.arange(trees.num_nodes, device=seeds_S.device)
    return uniform(seeds_S[trees.texts_M], trees.bases_M, draws_N.expand(len(trees.roots_M), -1))


def _emit(verification: Verification, last_M: Tensor, own_M: Tensor, sound_T: Tensor, chosen_T: Tensor) -> Accepted:
    """The kept drafts, then the rule's own token."""
    rows = verification.rows
    num_M, rows_MD = rows.depths_T[last_M], rows.ancestors_TD[last_M]
    depths_D = torch.arange(rows_MD.shape[1], device=rows_MD.device)
    drafts_MD = rows.tokens_T[rows_MD].roll(-1, dims=1).masked_fill(depths_D >= num_M[:, None], -1)
    emitted_MD = drafts_MD.scatter(1, num_M[:, None], own_M[:, None])
    sound_M = sound_T[rows_MD].all(dim=1)
    return Accepted(num_M=num_M, rows_MD=rows_MD, emitted_MD=emitted_MD, sound_M=sound_M, chosen_T=chosen_T)
