"""From a row of queries, keys and values side by side to the heads that attend.

Legend of shape suffixes: R rows, H query heads, K key heads, B query and key heads together (H + K), D head size,
C queries, keys and values together ((H + 2 K) * D).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.models.layers.norms import HeadNorm, QkNorm
from specdec.models.layers.rope import Rope, Rotation


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """An optional norm of queries and keys, optional clipping, then the rotation.

    `split` does all of it. Kernels that norm each head, rotate and store in one go take `packed` and the rest from here.
    """

    rope: Rope
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qk_norm: QkNorm | None = None
    clip: float | None = None

    @property
    def per_head_norm(self) -> HeadNorm | None:
        """The norm, where it is one of each head by itself."""
        return self.qk_norm if isinstance(self.qk_norm, HeadNorm) else None

    def split(self, qkv_RC: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [R, H, D], keys and values [R, K, D]; they may be views with gaps between rows."""
        num_rows, num_qk = qkv_RC.shape[0], self.num_heads + self.num_kv_heads
        qk, v = torch.split(qkv_RC, [num_qk * self.head_dim, self.num_kv_heads * self.head_dim], -1)
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if self.clip is not None:
            qk, v = qk.clamp(-self.clip, self.clip), v.clamp(-self.clip, self.clip)
        qk_RBD = self.rope.rotate(qk.view(num_rows, num_qk, self.head_dim), rotation)
        q_RHD, k_RKD = torch.split(qk_RBD, [self.num_heads, self.num_kv_heads], 1)
        return q_RHD, k_RKD, v.view(num_rows, self.num_kv_heads, self.head_dim)

    def packed(self, qkv_RC: Tensor) -> Tensor:
        """Contiguous [R, C] with everything done that comes before a norm of each head: a norm of all together, clipping."""
        if self.qk_norm is not None and self.per_head_norm is None:
            width = (self.num_heads + self.num_kv_heads) * self.head_dim
            qkv_RC = torch.cat((self.qk_norm(qkv_RC[:, :width]), qkv_RC[:, width:]), -1)
        return qkv_RC if self.clip is None else qkv_RC.clamp(-self.clip, self.clip)
