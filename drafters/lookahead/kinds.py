"""What lookahead tells apart among its candidates, and how likely each is right before any was seen.

Of an n-gram's tokens: how far they lie ahead, whether the newest of the n-grams that are still on their path proposes them, how
many of those do, and how many propose another. Of the window: whether a token stands right below the root.

Legend of shape suffixes: M members, G n-grams that begin with a token, K tokens behind their first, X kinds.
"""

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import FloatArray
from specdec.draft.protocol import CandidateKinds

_DEPTHS = 3  # that are told apart
_COUNTS = 3  # of n-grams that propose a token: one, two, more; of others: none, one, more
_OF_NGRAMS = _DEPTHS * 2 * _COUNTS * _COUNTS
# Chance that a candidate is right, given that all above it are, at temperature 0: by depth; by whether the newest proposes it
# or another; by proposers (rows) and others. Fitted on 16,630 outcomes in answers of SmolLM2-135M-Instruct to 30 prompts, with
# and without the whole window; cells with few outcomes lean on their table's mean.
_CHANCES = np.array([
    [
        [[0.47, 0.14, 0.07], [0.53, 0.18, 0.07], [0.49, 0.48, 0.36]],
        [[0.10, 0.28, 0.07], [0.10, 0.29, 0.06], [0.10, 0.27, 0.27]],
    ],
    [
        [[0.65, 0.29, 0.24], [0.63, 0.44, 0.32], [0.56, 0.61, 0.37]],
        [[0.14, 0.26, 0.11], [0.14, 0.28, 0.19], [0.14, 0.18, 0.21]],
    ],
    [
        [[0.78, 0.40, 0.58], [0.72, 0.72, 0.72], [0.72, 0.72, 0.72]],
        [[0.37, 0.41, 0.28], [0.37, 0.37, 0.37], [0.37, 0.37, 0.37]],
    ],
])  # fmt: skip
_WINDOW = (0.01, 0.18)  # right below the root, and below another token that was right; same outcomes


def lookahead_kinds() -> CandidateKinds:
    """Kinds in the order depth, newest or not, proposers, others; then those of the window."""
    priors: FloatArray = np.concatenate((_CHANCES.ravel(), _WINDOW))
    return CandidateKinds(priors, np.zeros(len(priors), np.int64))


def of_ngrams(tokens_MGK: Tensor) -> Tensor:
    """int64 [M, G, K], the kinds of n-grams' tokens, newest n-gram first; any where there is none."""
    there_MGG1 = ((tokens_MGK[:, :, None, 0] >= 0) & (tokens_MGK[:, None, :, 0] >= 0))[..., None]
    same_MGGK = (tokens_MGK[:, :, None] == tokens_MGK[:, None]).long().cumprod(3) * there_MGG1
    above_MGGK = torch.cat((there_MGG1.long(), same_MGGK[..., :-1]), 3)  # on the same path as far as the token above
    leaders_MG1K = above_MGGK.argmax(2, keepdim=True)
    led_MGK = same_MGGK.gather(2, leaders_MG1K)[:, :, 0]
    proposers_MGK = same_MGGK.sum(2)
    others_MGK = above_MGGK.sum(2) - proposers_MGK
    depths_K = torch.arange(tokens_MGK.shape[2], device=tokens_MGK.device).clamp(max=_DEPTHS - 1)
    counts_MGK = (proposers_MGK - 1).clamp(0, _COUNTS - 1) * _COUNTS + others_MGK.clamp(max=_COUNTS - 1)
    return (depths_K * 2 + 1 - led_MGK) * _COUNTS * _COUNTS + counts_MGK


def of_window(columns: int, size: int) -> list[int]:
    """The kinds of a window's tokens, column by column."""
    return [_OF_NGRAMS + (place > 0) for place in range(columns * size)]
