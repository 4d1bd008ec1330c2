"""Log probabilities of what is drawn, under the model's raw distribution: before any sampling parameter, temperature included.

Shape suffixes: N rows, V vocabulary, K most likely tokens.
"""

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
    top_logs_NK, top_tokens_NK = sort_descending(logs_NV, top)
    return logs_NV.gather(1, tokens_N[:, None])[:, 0], top_tokens_NK, top_logs_NK
