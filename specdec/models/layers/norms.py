"""RMS norms: of the residual stream, of each query and key head, of all heads together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.linear import rms_norm

# takes and returns queries and keys side by side, [R, B * D], B query and key heads together
QkNorm = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / rms(x) * weight over the last dimension, computed in float32 inside."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """An RMS norm of each query and key head by itself. weight [B * D]: the queries' and keys' weights, head by head."""

    weight: Tensor
    head_dim: int
    eps: float

    def __call__(self, qk: Tensor) -> Tensor:
        heads = F.rms_norm(qk.view(qk.shape[0], -1, self.head_dim), (self.head_dim,), None, self.eps)
        return heads.view(qk.shape[0], -1) * self.weight

    @property
    def of_query(self) -> Tensor:
        """[D]; all query heads share it."""
        return self.weight[: self.head_dim]

    @property
    def of_key(self) -> Tensor:
        """[D]; all key heads share it."""
        return self.weight[-self.head_dim :]


@dataclass(frozen=True, slots=True)
class ProjectionNorm:
    """An RMS norm of all queries together, and one of all keys."""

    q: RmsNorm
    k: RmsNorm

    def __call__(self, qk: Tensor) -> Tensor:
        q, k = torch.split(qk, [len(self.q.weight), len(self.k.weight)], -1)
        return torch.cat((self.q(q), self.k(k)), -1)
