"""From edited logits to the target's own tokens, row by row: temperature, top_k, top_p, min_p, then the largest logit with
noise.

token = argmax(logit / T + g(seed, position, token)) over what the filters leave, at T = 0 plain argmax; ties go to the lower
token. The bits of a row depend on that row and its sequence alone.

Shape suffixes: T tree rows, V vocabulary, S slots.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from specdec.kernels.gumbel import Keys, gumbel_argmax
from specdec.kernels.logit_edits import Edits
from specdec.kernels.tree_rows import TreeRows
from specdec.round.sample.truncation import Truncation, truncate, truncate_among

NARROW = 1024  # candidates of a nucleus that are looked at where no shape may depend on how many there are


class Nucleus(IntEnum):
    """How rows are truncated."""

    NONE = 0  # no row is
    NARROW = 1  # among the NARROW best tokens; rows that need more are not settled
    WIDE = 2  # the same, and rows that need more among all tokens
    EXACT = 3  # as many candidates as it takes, which shapes depend on


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling parameters of all slots. A greedy slot has temperature 1, no noise and no filter. ones_S: temperatures of 1.

    truncated_S: bool, whether a filter drops anything. scored_S: bool, whether log probabilities are wanted.
    """

    keys: Keys
    truncation: Truncation
    truncated_S: Tensor
    scored_S: Tensor
    ones_S: Tensor
    edits: Edits


@dataclass(frozen=True, slots=True)
class Drawn:
    """tokens_T: int64. tops_T: float32, the row's largest logit, not finite where it gave no token. settled_T: bool, False
    where the token is not certain; None where all are."""

    tokens_T: Tensor
    tops_T: Tensor
    settled_T: Tensor | None


def draw(logits_TV: Tensor, rows: TreeRows, sampling: Sampling, nucleus: Nucleus, most: int = 0) -> Drawn:
    """The target's own token after each tree row.

    Args:
        logits_TV: float32, contiguous, edited.
        rows: the tree rows.
        sampling: of `rows.texts_T`.
        nucleus: how rows are truncated.
        most: see `truncated`.
    """
    if nucleus is Nucleus.NONE:
        return Drawn(*gumbel_argmax(logits_TV, sampling.keys, rows.texts_T, rows.positions_T, early=True), None)
    scores_TV, settled_T = truncated(logits_TV, rows.texts_T, sampling, nucleus, most)
    keys = Keys(sampling.keys.seeds_S, sampling.ones_S, sampling.keys.noisy_S)
    tokens_T, _ = gumbel_argmax(scores_TV.contiguous(), keys, rows.texts_T, rows.positions_T)
    return Drawn(tokens_T, logits_TV.amax(dim=-1), settled_T)


def truncated(
    logits_TV: Tensor, owners_T: Tensor, sampling: Sampling, nucleus: Nucleus, most: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Logits over temperature, -inf for what the filters drop; and which rows are settled, as in `Drawn`.

    Args:
        logits_TV: float32.
        owners_T: slots.
        sampling: of all slots.
        nucleus: how rows are truncated.
        most: no more rows have a filter that drops anything; 0: any number. Of a few rows among many only these are looked at.
    """
    scores_TV = logits_TV / sampling.keys.temperatures_S[owners_T, None]
    if nucleus is Nucleus.NONE:
        return scores_TV, None
    if nucleus is Nucleus.EXACT:
        chosen = sampling.truncated_S[owners_T].nonzero()[:, 0]
        scores_TV[chosen] = truncate(scores_TV[chosen], sampling.truncation.of(owners_T[chosen]))
        return scores_TV, None
    if not 0 < most < len(scores_TV):
        return _among(scores_TV, sampling.truncation.of(owners_T), nucleus)
    chosen_N = first_rows(sampling.truncated_S[owners_T], most)
    left_NV, settled_N = _among(scores_TV[chosen_N], sampling.truncation.of(owners_T[chosen_N]), nucleus)
    scores_TV.index_copy_(0, chosen_N, left_NV)
    if settled_N is None:
        return scores_TV, None
    return scores_TV, torch.ones(len(scores_TV), dtype=torch.bool, device=scores_TV.device).index_copy_(0, chosen_N, settled_N)


def first_rows(wanted_T: Tensor, most: int) -> Tensor:
    """int64 [most]: the rows that are wanted, in order, then others. wanted_T: bool."""
    return wanted_T.to(torch.int8).sort(descending=True, stable=True).indices[:most]


def _among(scores_NV: Tensor, limits: Truncation, nucleus: Nucleus) -> tuple[Tensor, Tensor | None]:
    """`truncated` for a nucleus that shapes do not depend on."""
    vocab_size = scores_NV.shape[1]
    left_NV, settled_N = truncate_among(scores_NV, limits, min(NARROW, vocab_size))
    if nucleus is Nucleus.NARROW:
        return left_NV, settled_N
    whole_NV, _ = truncate_among(scores_NV, limits, vocab_size)
    return torch.where(settled_N[:, None], left_NV, whole_NV), None


def probabilities(
    logits_TV: Tensor, rows: TreeRows, sampling: Sampling, nucleus: Nucleus, most: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The distribution that `draw` draws from after each tree row, float64 [T, V], one-hot where greedy; and which rows are
    settled, as in `Drawn`."""
    scores_TV, settled_T = truncated(logits_TV, rows.texts_T, sampling, nucleus, most)
    best_TV = torch.full_like(scores_TV, -torch.inf).scatter_(1, logits_TV.argmax(dim=-1, keepdim=True), 0.0)
    noisy_T1 = sampling.keys.noisy_S[rows.texts_T, None]
    return torch.where(noisy_T1, scores_TV, best_TV).double().softmax(dim=-1), settled_T
