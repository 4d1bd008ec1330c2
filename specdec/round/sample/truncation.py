"""Truncation to a nucleus: which tokens top_k, top_p and min_p leave.

Gives bit for bit what a full sort of the vocabulary would give. A few candidates are looked at first, and more only where
those do not settle the matter.

Shape suffixes: N rows, V vocabulary, K candidates of a row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_STAGES = (128, 2048, 16384)  # candidates of a nucleus, before the whole vocabulary is sorted
# masses are added as integers, parts of this: a sum of floats is rounded in an order that depends on how many rows there are
_WHOLE = 2.0**44


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """The filters of the rows. top_k_N: int64, the vocabulary's size for none. top_p_N, min_p_N: float64, 1 and 0 for none."""

    top_k_N: Tensor
    top_p_N: Tensor
    min_p_N: Tensor

    def of(self, rows: Tensor) -> "Truncation":
        """Those of some rows."""
        return Truncation(top_k_N=self.top_k_N[rows], top_p_N=self.top_p_N[rows], min_p_N=self.min_p_N[rows])


def sort_descending(scores_NV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` largest scores of each row in descending order and their tokens, equal scores by ascending token.

    Which of several tokens that equal the last score are among them is not defined, unless `num` is the whole row.
    """
    if num == scores_NV.shape[1]:
        values_NV, tokens_NV = torch.sort(scores_NV, dim=-1, descending=True, stable=True)
        return values_NV, tokens_NV
    tokens_NK = torch.topk(scores_NV, num, dim=-1, sorted=False).indices.sort(dim=-1).values
    values_NK, order_NK = torch.sort(scores_NV.gather(1, tokens_NK), dim=-1, descending=True, stable=True)
    return values_NK, tokens_NK.gather(1, order_NK)


def truncate(scores_NV: Tensor, truncation: Truncation) -> Tensor:
    """The scores with -inf for the tokens that top_k, then top_p, then min_p drop.

    top_k keeps the k best; top_p, of those, the shortest run of the best whose share of their mass reaches it; min_p those at
    least that fraction as likely as the best. Equal scores are ranked by ascending token.

    Args:
        scores_NV: float32, logits over temperature.
        truncation: the filters.
    """
    total_N = _total_mass(scores_NV)
    left_NV = torch.full_like(scores_NV, -torch.inf)
    rows = torch.arange(len(scores_NV), device=scores_NV.device)
    for num in (*(stage for stage in _STAGES if stage < scores_NV.shape[1]), scores_NV.shape[1]):
        chosen_NV = scores_NV if len(rows) == len(scores_NV) else scores_NV[rows]
        values_NK, tokens_NK, settled_N = _nucleus(chosen_NV, truncation.of(rows), total_N[rows], num)
        left_NV[rows[:, None], tokens_NK] = values_NK
        rows = rows[~settled_N]
        if len(rows) == 0:
            break
    return left_NV


def truncate_among(scores_NV: Tensor, truncation: Truncation, num: int) -> tuple[Tensor, Tensor]:
    """`truncate` where the `num` best tokens suffice, without a look at the result; bool [N] tells for which rows they do."""
    vocab_size = scores_NV.shape[1]
    whole_N = (truncation.top_k_N >= vocab_size) & (truncation.top_p_N >= 1.0) & (truncation.min_p_N <= 0.0)
    total_N = _total_mass(scores_NV)
    values_NK, tokens_NK, settled_N = _nucleus(scores_NV, truncation, total_N, num)
    left_NV = torch.full_like(scores_NV, -torch.inf).scatter_(1, tokens_NK, values_NK)
    return torch.where(whole_N[:, None], scores_NV, left_NV), settled_N | whole_N | (num == vocab_size)


def _total_mass(scores_NV: Tensor) -> Tensor:
    """float64 [N]: what all tokens of a row weigh where the best one weighs 1."""
    return 1.0 / aligned_rows(scores_NV).softmax(dim=-1).amax(dim=-1).double()


def aligned_rows(scores_NV: Tensor) -> Tensor:
    """The same with tokens that nobody draws, so that rows begin at multiples of 16 bytes: on a GPU a softmax adds up a row in
    an order that depends on where it begins."""
    missing = -scores_NV.shape[1] % (16 // scores_NV.element_size())
    return F.pad(scores_NV, (0, missing), value=-torch.inf) if missing else scores_NV


def _nucleus(scores_NV: Tensor, truncation: Truncation, total_N: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `num` best tokens with their scores, -inf for those that are dropped, and whether that is certainly the nucleus.

    Whatever is kept belongs to the nucleus; where it is not certain, more may.
    """
    values_NK, tokens_NK = sort_descending(scores_NV, num)
    mass_NK = (values_NK.double() - values_NK[:, :1].double()).exp()
    parts_NK = (mass_NK * _WHOLE).long()
    sums_NK = parts_NK.cumsum(dim=-1)
    by_top_k_N = truncation.top_k_N < scores_NV.shape[1]
    last_N1 = (truncation.top_k_N - 1).clamp(max=num - 1)[:, None]
    mass_N = torch.where(by_top_k_N, sums_NK.gather(1, last_N1)[:, 0].double(), total_N * _WHOLE)
    needed_N = torch.where(truncation.top_p_N < 1.0, truncation.top_p_N * mass_N, torch.inf)
    kept_NK = (torch.arange(num, device=scores_NV.device) <= last_N1) & ((sums_NK - parts_NK).double() < needed_N[:, None])
    kept_NK &= mass_NK >= truncation.min_p_N[:, None]
    # of the tokens that equal the last candidate some may be missing: the worst one kept must be better
    worst_N = torch.where(kept_NK, values_NK, torch.inf).amin(dim=-1)
    settled_N = (worst_N > values_NK[:, -1]) & (~by_top_k_N | (truncation.top_k_N <= num))
    return values_NK.masked_fill(~kept_NK, -torch.inf), tokens_NK, settled_N
