"""Block verification: the rejection rule for chains of sampled drafts.

The whole chain is weighed at once: the longest prefix whose own draw succeeds is kept, even past a draw that failed, so that
what follows may make good for a weak token in the middle. No rule that is exact in distribution keeps more of a single path.
Source: Sun et al., "Block verification accelerates speculative decoding" (2024).
"""

import torch
from torch import Tensor

from specdec.round.accept.residual import acceptance_probability, drawn_from, stopping_probability
from specdec.round.batch import TreeRows


def verify_chain(
    tree: TreeRows, p_TV: Tensor, q_TV: Tensor, uniforms_SD: Tensor, lengths_S: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Decide how much of each chain is kept.

    Args:
        tree: the trees; those that are no chains get void results.
        p_TV: float64, the target's distributions.
        q_TV: float64, the distributions that the rows' children were drawn from.
        uniforms_SD: float64, one draw per depth; that of depth 0 is not used.
        lengths_S: int64, drafts in each chain.

    Returns:
        int64 [S] kept drafts, int64 [S] the last kept row, float64 [S, V] weights of the token that follows it.
    """
    tokens_V = torch.arange(p_TV.shape[1], device=p_TV.device)
    kept_S, kept_weight_S = torch.zeros_like(lengths_S), torch.ones_like(p_TV[tree.roots_S, 0])
    weight_S = kept_weight_S
    ends_S = tree.roots_S + lengths_S
    q_SV = torch.zeros_like(p_TV[tree.roots_S])
    kept_q_SV = q_SV
    for depth in range(uniforms_SD.shape[1]):
        row_S = torch.minimum(tree.roots_S + depth, ends_S)
        next_S = torch.minimum(row_S + 1, ends_S)
        if depth > 0:
            x_SV = (tokens_V == tree.tokens_T[row_S, None]).to(p_TV)
            weight_S = acceptance_probability(p_TV[torch.clamp(row_S - 1, min=0)], q_SV, x_SV, weight_S)
        q_SV = drawn_from(q_TV[row_S], (tokens_V == tree.tokens_T[next_S, None]).to(p_TV))
        keep_S = torch.where(lengths_S == depth, weight_S, stopping_probability(weight_S, p_TV[row_S], q_SV))
        takes_S = (depth <= lengths_S) & ((uniforms_SD[:, depth] < keep_S) | (depth == 0))
        kept_S = torch.where(takes_S, depth, kept_S)
        kept_weight_S = torch.where(takes_S, weight_S, kept_weight_S)
        kept_q_SV = torch.where(takes_S[:, None], q_SV, kept_q_SV)
    last_S = tree.roots_S + kept_S
    p_SV = p_TV[last_S]
    left_SV = (kept_weight_S[:, None] * p_SV - kept_q_SV).clip(0)
    whole_S = (kept_S == lengths_S) | (left_SV.sum(-1) == 0)
    return kept_S, last_S, torch.where(whole_S[:, None], p_SV, left_SV)
