"""The target's own token of each row: argmax(logit / T + noise), the noise keyed by (seed, position, token).

Legend of shape suffixes: N rows, V vocabulary.
"""

import torch
from torch import Tensor

from specdec.kernels.gumbel.reference import gumbel_argmax_reference
from specdec.kernels.linear import uses_triton

__all__ = ["gumbel_argmax"]


def gumbel_argmax(logits_NV: Tensor, seeds_N: Tensor, positions_N: Tensor, temperatures_N: Tensor, noisy_N: Tensor) -> Tensor:
    """int64 [N]: the token of the largest logit / T + Gumbel noise; ties go to the lower token, NaN counts as -inf.

    Args:
        logits_NV: float32, contiguous.
        seeds_N: int64, 0 or more.
        positions_N: int64, absolute position of the token that is drawn.
        temperatures_N: float32, above 0.
        noisy_N: bool; rows without noise take the plain argmax.
    """
    assert logits_NV.dtype == temperatures_N.dtype == torch.float32, "logits and temperatures are float32"
    if uses_triton(logits_NV.device):
        from specdec.kernels.gumbel.kernel import gumbel_argmax_triton

        return gumbel_argmax_triton(logits_NV, seeds_N, positions_N, temperatures_N, noisy_N)
    return gumbel_argmax_reference(logits_NV, seeds_N, positions_N, temperatures_N, noisy_N)
