"""Whether prompt rows could be computed, for prompts go on being read before a token of theirs is judged: a ring beside the one
that rounds tell their outcome to.

Legend of shape suffixes: C prompt rows, E hidden size, M members of a round, H rounds whose outcome is kept.
"""

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import BoolArray
from specdec.kernels.commit import tell


class ChunkRing:
    """Args:
    most_members: of a round.
    turns: rounds that the ring keeps.
    device: where they run.
    """

    def __init__(self, most_members: int, turns: int, device: torch.device) -> None:
        self._sizes_HM = torch.zeros(turns, most_members, pin_memory=device.type == "cuda")
        self._read_HM = self._sizes_HM.numpy()  # the same memory

    def tell(self, hidden_CE: Tensor, members_C: Tensor, num_members: int, turns_1: Tensor) -> None:
        """Within a round. A row that is not finite somewhere on its way is so at its end, since layers add to what was there.
        A sum is finite where its parts are, in whatever order they are added."""
        sizes_C = torch.linalg.vector_norm(hidden_CE, ord=torch.inf, dim=1, dtype=torch.float32)
        sizes_M = torch.zeros(num_members, device=sizes_C.device).index_add_(0, members_C, sizes_C)
        tell(sizes_M, self._sizes_HM, turns_1)

    def read(self, turn: int, num_members: int) -> BoolArray:
        """bool [M], of the round of that turn: whether all prompt rows of each member are finite."""
        finite: BoolArray = np.isfinite(self._read_HM[turn % len(self._read_HM), :num_members])
        return finite
