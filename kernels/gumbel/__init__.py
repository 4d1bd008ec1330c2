"""The target's own token of each row: argmax(logit / T + noise), the noise keyed by (seed, position, token).

Legend of shape suffixes: N rows, K keys, V vocabulary.
"""

import torch
from torch import Tensor

from specdec.kernels.gumbel.reference import gumbel_argmax_reference
from specdec.kernels.linear import uses_triton

__all__ = ["gumbel_argmax"]


def gumbel_argmax(
    logits_NV: Tensor,
    seeds_K: Tensor,
    positions_N: Tensor,
    temperatures_K: Tensor,
    noisy_K: Tensor,
    *,
    early: bool = False,
) -> tuple[Tensor, Tensor]:
    """The token of the largest logit / T + Gumbel noise; ties go to the lower token, NaN counts as -inf.

    Args:
        logits_NV: float32, contiguous.
        seeds_K: int64, 0 or more; N / K neighbouring rows share an entry of what is given by key.
        positions_N: int64, absolute position of the token that is drawn.
        temperatures_K: float32, above 0.
        noisy_K: bool; rows without noise take the plain argmax.
        early: the keys may be read before the kernels just before this one have ended, see `tree_attention_triton`.

    Returns:
        int64 [N] tokens, and float32 [N] the largest logits, NaN where there is one among them.
    """
    assert logits_NV.dtype == temperatures_K.dtype == torch.float32, "logits and temperatures are float32"
    assert len(logits_NV) % max(1, len(seeds_K)) == 0, "each key has as many rows"
    if uses_triton(logits_NV.device):
        from specdec.kernels.gumbel.kernel import gumbel_argmax_triton

        return gumbel_argmax_triton(logits_NV, seeds_K, positions_N, temperatures_K, noisy_K, early=early)
    return gumbel_argmax_reference(logits_NV, seeds_K, positions_N, temperatures_K, noisy_K)
