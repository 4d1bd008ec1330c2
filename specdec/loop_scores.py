"""Log probabilities of what rounds draw without the host, for requests that ask.

Legend of shape suffixes: R rows, V vocabulary, K most likely tokens, T rounds whose outcome is kept, X entries of a round.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.kernels.chain import tell
from specdec.loop_members import Member, RoundScores
from specdec.request import MAX_TOP_LOGPROBS
from specdec.round.sample.sampling import read_logs


class LoopScores:
    """A ring beside the one that rounds tell their outcome to.

    Args:
        most_rows: of a round.
        turns: rounds that the ring keeps.
        vocab_size: of the logits.
        device: where they are.
    """

    def __init__(self, most_rows: int, turns: int, vocab_size: int, device: torch.device) -> None:
        self._top = min(MAX_TOP_LOGPROBS, vocab_size)
        pinned = device.type == "cuda"
        self._logs_TX = torch.zeros(turns, most_rows * (1 + self._top), pin_memory=pinned)
        self._tokens_TX = torch.zeros(turns, most_rows * self._top, dtype=torch.int64, pin_memory=pinned)
        self.asked = False  # whether any sequence wants them

    def set(self, members: Sequence[Member]) -> None:
        """The sequences."""
        self.asked = any(member.sampling.logprobs is not None for member in members)

    def tell(self, logs_RV: Tensor, chosen_R: Tensor, turns_1: Tensor) -> None:
        """Within a round: logs_RV is float32, chosen_R int64, the target's own tokens; turns_1 as in `Chains`."""
        # a row that is not finite may have given anything; the host runs such a round again
        tokens_R = chosen_R.clamp(0, logs_RV.shape[1] - 1)
        own_R, top_tokens_RK, top_logs_RK = read_logs(logs_RV, tokens_R, self._top)
        tell(torch.cat((own_R[:, None], top_logs_RK), 1), self._logs_TX, turns_1)
        tell(top_tokens_RK.contiguous(), self._tokens_TX, turns_1)

    def read(self, turn: int, members: int, width: int) -> RoundScores:
        """What the round of that turn told, once it is over."""
        turn, rows = turn % len(self._logs_TX), members * width
        logs = self._logs_TX[turn, : rows * (1 + self._top)].view(members, width, -1)
        tokens = self._tokens_TX[turn, : rows * self._top].view(members, width, self._top)
        return RoundScores(logs[..., 0].tolist(), tokens.tolist(), logs[..., 1:].tolist())
