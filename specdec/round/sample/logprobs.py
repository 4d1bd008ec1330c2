"""Log probabilities of what is drawn, under the model's raw distribution: before any sampling parameter, temperature included.

Shape suffixes: N rows, V vocabulary, K most likely tokens.
"""

import torch
from torch import Tensor

from specdec.round.sample.truncation import aligned_rows, sort_descending


def log_probs(logits_NV: Tensor) -> Tensor:
    """float32 [N, V]: log p of every token."""
    return aligned_rows(logits_NV).log_softmax(dim=-1)[:, : logits_NV.shape[1]]


def read_logs(logs_NV: Tensor, tokens_N: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log p of some tokens and of the most likely ones.

    Returns:
        float32 [N]; int64 [N, top] and float32 [N, top], most likely first, equal ones by ascending token.
    """
    top_logs_NK, top_tokens_NK = most_likely(logs_NV, top)
    return logs_NV.gather(1, tokens_N[:, None])[:, 0], top_tokens_NK, top_logs_NK


def most_likely(logs_NV: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest of each row in descending order and their tokens, equal ones by ascending token. Of those that equal
    the last, `topk` takes any; here the lower ones are among them."""
    vocab_size = logs_NV.shape[1]
    logs_NK, tokens_NK = sort_descending(logs_NV, top)
    if top in (0, vocab_size):
        return logs_NK, tokens_NK
    last_N1 = logs_NK[:, -1:]
    behind_V = vocab_size - torch.arange(vocab_size, device=logs_NV.device, dtype=torch.float32)  # whole numbers below 2**24
    equal_NK = vocab_size - torch.where(logs_NV == last_N1, behind_V, 1.0).topk(top, dim=-1).values.long()
    place_NK = torch.arange(top, device=logs_NV.device) - (logs_NK > last_N1).sum(1, keepdim=True)
    return logs_NK, torch.where(place_NK < 0, tokens_NK, equal_NK.gather(1, place_NK.clamp(min=0)))
