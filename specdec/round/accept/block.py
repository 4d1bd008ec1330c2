"""Block verification: the rejection rule for chains of sampled drafts.

The whole chain is weighed at once: the longest prefix whose own draw succeeds is kept, even past a draw that failed, so that
what follows may make good for a weak token in the middle. No rule that is exact in distribution keeps more of a single path.
Source: Sun et al., "Block verification accelerates speculative decoding" (2024).

Shape suffixes: M trees, T tree rows, N nodes, V vocabulary.
"""

import torch
from torch import Tensor

from specdec.round.accept.residual import acceptance_probability, drawn_from, stopping_probability
from specdec.round.accept.trees import RuleTrees


def verify_chains(trees: RuleTrees, p_TV: Tensor, q_TV: Tensor, uniforms_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Decide how much of each chain is kept.

    Args:
        trees: the trees; those that are no chains get void results.
        p_TV: float64, the target's distributions.
        q_TV: float64, the distributions that the rows' children were drawn from.
        uniforms_MN: float64, one draw per depth; that of depth 0 is not used.

    Returns:
        int64 [M] the last kept row, float64 [M, V] weights of the token that follows it.
    """
    tokens_V = torch.arange(p_TV.shape[1], device=p_TV.device)
    lengths_M = trees.counts_M
    kept_M, kept_weight_M = torch.zeros_like(lengths_M), torch.ones_like(p_TV[trees.roots_M, 0])
    weight_M = kept_weight_M
    q_MV = torch.zeros_like(p_TV[trees.roots_M])
    kept_q_MV = q_MV
    for depth in range(trees.num_nodes):
        row_M = _row(trees, depth)
        if depth > 0:
            x_MV = (tokens_V == trees.tokens_T[row_M, None]).to(p_TV)
            weight_M = acceptance_probability(p_TV[_row(trees, depth - 1)], q_MV, x_MV, weight_M)
        q_MV = drawn_from(q_TV[row_M], (tokens_V == trees.tokens_T[_row(trees, depth + 1), None]).to(p_TV))
        keep_M = torch.where(lengths_M == depth, weight_M, stopping_probability(weight_M, p_TV[row_M], q_MV))
        takes_M = (depth <= lengths_M) & ((uniforms_MN[:, depth] < keep_M) | (depth == 0))
        kept_M = torch.where(takes_M, depth, kept_M)
        kept_weight_M = torch.where(takes_M, weight_M, kept_weight_M)
        kept_q_MV = torch.where(takes_M[:, None], q_MV, kept_q_MV)
    last_M = trees.roots_M + kept_M
    p_MV = p_TV[last_M]
    left_MV = (kept_weight_M[:, None] * p_MV - kept_q_MV).clip(0)
    whole_M = (kept_M == lengths_M) | (left_MV.sum(-1) == 0)
    return last_M, torch.where(whole_M[:, None], p_MV, left_MV)


def _row(trees: RuleTrees, depth: int) -> Tensor:
    """int64 [M]: the row at a depth of each chain, the last one behind its end."""
    return trees.roots_M + trees.counts_M.clamp(max=depth)
