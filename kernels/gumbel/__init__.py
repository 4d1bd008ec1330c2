"""The target's own token of each row: argmax(logit / T + noise), the noise keyed by (seed, position, token).

Legend of shape suffixes: N rows, S sequences that own rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.gumbel.search import gumbel_argmax_search, race
from specdec.kernels.linear import uses_triton

__all__ = ["Keys", "gumbel_argmax", "gumbel_topk"]


@dataclass(frozen=True, slots=True)
class Keys:
    """Of each sequence: seeds_S int64, 0 or more; temperatures_S float32, above 0, and 1 where there is no noise; noisy_S bool,
    False for the plain argmax."""

    seeds_S: Tensor
    temperatures_S: Tensor
    noisy_S: Tensor


def gumbel_argmax(
    logits_NV: Tensor, keys: Keys, owners_N: Tensor, positions_N: Tensor, *, domain: int = 0, early: bool = False
) -> tuple[Tensor, Tensor]:
    """The token of the largest logit / T + Gumbel noise; ties go to the lower token, NaN counts as -inf.

    Args:
        logits_NV: float32, contiguous.
        keys: where the noise of each sequence comes from.
        owners_N: int64, the sequence that each row belongs to.
        positions_N: int64, absolute position of the row; the token that is drawn lies right behind.
        domain: stream of the noise, see `specdec.round.sample.noise.Domain`.
        early: the keys may be read before the kernels just before this one have ended, see `tree_attention_triton`.

    Returns:
        int64 [N] tokens, and float32 [N] the largest logits, NaN where there is one among them.
    """
    assert logits_NV.dtype == keys.temperatures_S.dtype == torch.float32, "logits and temperatures are float32"
    if uses_triton(logits_NV.device):
        from specdec.kernels.gumbel.kernel import gumbel_argmax_triton

        return gumbel_argmax_triton(logits_NV, keys, owners_N, positions_N, domain=domain, early=early)
    return gumbel_argmax_search(logits_NV, keys, owners_N, positions_N, domain=domain)


def gumbel_topk(
    logits_NV: Tensor, keys: Keys, owners_N: Tensor, positions_N: Tensor, num: int, *, domain: int = 0
) -> tuple[Tensor, Tensor]:
    """The `num` tokens of the largest logit / T + Gumbel noise; arguments as for `gumbel_argmax`.

    Returns:
        float32 [N, num] sums in descending order, and int64 [N, num] tokens.
    """
    assert logits_NV.dtype == keys.temperatures_S.dtype == torch.float32, "logits and temperatures are float32"
    if uses_triton(logits_NV.device):
        from specdec.kernels.gumbel.kernel import gumbel_topk_triton

        return gumbel_topk_triton(logits_NV, keys, owners_N, positions_N, num, domain=domain)
    scores_NV = logits_NV / keys.temperatures_S[owners_N, None]
    noisy_N = keys.noisy_S[owners_N]
    sums_Nk, tokens_Nk = race(scores_NV, keys.seeds_S[owners_N], positions_N + 1, num, domain)
    plain = torch.topk(scores_NV, num, dim=-1)
    return torch.where(noisy_N[:, None], sums_Nk, plain.values), torch.where(noisy_N[:, None], tokens_Nk, plain.indices)
