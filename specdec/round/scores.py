"""Log probabilities of what rounds emit, for requests that ask: a ring beside the one that rounds tell their outcome to.

Legend of shape suffixes: T tree rows, V vocabulary, K most likely tokens, H rounds whose outcome is kept, X entries of a round.
"""

import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.kernels.commit import tell
from specdec.kernels.tree_walk import Accepted
from specdec.request import MAX_TOP_LOGPROBS
from specdec.round.outcome import Scores
from specdec.round.sample.logprobs import read_logs


class ScoreRing:
    """Args:
    most_rows: tree rows of a round.
    turns: rounds that the ring keeps.
    vocab_size: of the logits.
    device: where they are.
    """

    def __init__(self, most_rows: int, turns: int, vocab_size: int, device: torch.device) -> None:
        self._top = min(MAX_TOP_LOGPROBS, vocab_size)
        pinned = device.type == "cuda"
        self._logs_HX = torch.zeros(turns, most_rows * (1 + self._top), pin_memory=pinned)
        self._tokens_HX = torch.zeros(turns, most_rows * self._top, dtype=torch.int64, pin_memory=pinned)

    def tell(self, logs_TV: Tensor, accepted: Accepted, has_tree_M: Tensor, turns_1: Tensor) -> None:
        """Within a round. logs_TV: float32, log p of every token after each tree row. has_tree_M: bool."""
        tokens_T = torch.zeros(len(logs_TV), dtype=torch.int64, device=logs_TV.device)
        emitted_MD = torch.where(has_tree_M[:, None], accepted.emitted_MD, -1)
        # the last kept row comes again behind a path's end, with no token
        tokens_T.scatter_reduce_(0, accepted.rows_MD.flatten(), emitted_MD.flatten(), "amax")
        own_T, top_tokens_TK, top_logs_TK = read_logs(logs_TV, tokens_T.clamp(0, logs_TV.shape[1] - 1), self._top)
        tell(torch.cat((own_T[:, None], top_logs_TK), 1), self._logs_HX, turns_1)
        tell(top_tokens_TK.contiguous(), self._tokens_HX, turns_1)

    def read(self, turn: int, rows: int, firsts: IntArray) -> Scores:
        """What the round of that turn told, once it is over."""
        turn = turn % len(self._logs_HX)
        logs = self._logs_HX[turn, : rows * (1 + self._top)].view(rows, -1).double().numpy()
        tokens = self._tokens_HX[turn, : rows * self._top].view(rows, self._top).numpy().copy()
        return Scores(logs[:, 0], tokens, logs[:, 1:], firsts)
