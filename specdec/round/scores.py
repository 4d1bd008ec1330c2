"""Log probabilities of what rounds emit, or of the prompts that they read, for requests that ask: a ring beside the one that
rounds tell their outcome to.

Legend of shape suffixes: N rows, T tree rows, V vocabulary, K most likely tokens, M members, D depths, H rounds whose outcome
is kept, X entries of a round.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.kernels.commit import tell
from specdec.kernels.tree_walk import Accepted
from specdec.request import MAX_TOP_LOGPROBS
from specdec.round.outcome import Scores
from specdec.round.sample.logprobs import log_probs, read_logs

_ROWS = 64  # prompt rows whose logits are there at once: 64 MB for a vocabulary of 250,000


class Scored(NamedTuple):
    """Of some rows: float32 [N, 1 + K], log p of one token and of the most likely ones; int64 [N, 1 + K], how many are likelier
    than the one, plus one, and the most likely ones."""

    logs_NX: Tensor
    tokens_NX: Tensor


def emitted_tokens(accepted: Accepted, has_tree_M: Tensor, rows: int) -> Tensor:
    """int64 [T]: the token that was emitted behind each of `rows` tree rows; below 1 where none was. has_tree_M: bool."""
    tokens_T = torch.zeros(rows, dtype=torch.int64, device=has_tree_M.device)
    emitted_MD = torch.where(has_tree_M[:, None], accepted.emitted_MD, -1)
    # the last kept row comes again behind a path's end, with no token
    return tokens_T.scatter_reduce_(0, accepted.rows_MD.flatten(), emitted_MD.flatten(), "amax")


class ScoreRing:
    """Args:
    most_rows: of a round.
    turns: rounds that the ring keeps.
    vocab_size: of the logits.
    device: where they are.
    """

    def __init__(self, most_rows: int, turns: int, vocab_size: int, device: torch.device) -> None:
        self._top = min(MAX_TOP_LOGPROBS, vocab_size)
        pinned, width = device.type == "cuda", most_rows * (1 + self._top)
        self._logs_HX = torch.zeros(turns, width, pin_memory=pinned)
        self._tokens_HX = torch.zeros(turns, width, dtype=torch.int64, pin_memory=pinned)

    def score(self, logs_NV: Tensor, tokens_N: Tensor) -> Scored:
        """Of a token after each row. logs_NV: float32, log p of every token there."""
        own_N, top_tokens_NK, top_logs_NK = read_logs(logs_NV, tokens_N, self._top)
        ranks_N = (logs_NV > own_N[:, None]).sum(1) + 1
        return Scored(torch.cat((own_N[:, None], top_logs_NK), 1), torch.cat((ranks_N[:, None], top_tokens_NK), 1))

    def score_prompts(self, logits: Callable[[Tensor], Tensor], hidden_CE: Tensor, tokens_C: Tensor, turns_1: Tensor) -> None:
        """Within a round: of the token after each prompt row, a few rows at a time: logits of all would fill gigabytes.

        logits: of some rows' hidden states.
        """
        pieces = zip(torch.split(hidden_CE, _ROWS), torch.split(tokens_C, _ROWS), strict=True)
        self.tell([self.score(log_probs(logits(hidden_PE)), tokens_P) for hidden_PE, tokens_P in pieces], turns_1)

    def tell(self, pieces: Sequence[Scored], turns_1: Tensor) -> None:
        """Within a round: of all its rows, piece by piece."""
        logs, tokens = zip(*pieces, strict=True)
        tell(torch.cat(logs), self._logs_HX, turns_1)
        tell(torch.cat(tokens), self._tokens_HX, turns_1)

    def read(self, turn: int, rows: int, firsts: IntArray) -> Scores:
        """What the round of that turn told, once it is over."""
        turn, width = turn % len(self._logs_HX), rows * (1 + self._top)
        logs = self._logs_HX[turn, :width].view(rows, -1).double().numpy()
        tokens = self._tokens_HX[turn, :width].view(rows, -1).numpy().copy()
        return Scores(own_T=logs[:, 0], ranks_T=tokens[:, 0], tokens_TK=tokens[:, 1:], logs_TK=logs[:, 1:], firsts_M=firsts)
