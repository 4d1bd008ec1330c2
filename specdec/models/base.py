"""What a model offers the runner, and what it reads besides its rows.

Legend of shape suffixes: R rows, E hidden size, H query heads, K key heads, D head size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight
from specdec.models.config import ModelConfig

__all__ = ["CacheSpec", "Model", "ModelConfig", "RoundContext", "Weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSpec:
    """What an attention layer keeps per position: a key and a value for each key head."""

    kind: Literal["attention"] = "attention"
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # positions that a row looks back; None: all


class RoundContext(Protocol):
    """The round as a forward pass sees it. The runner implements it."""

    positions_R: Tensor  # int64

    def attend(self, layer: int, q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> Tensor:
        """Keep k and v in the layer's cache; attention of each row over its own history, itself included: [R, H, D].

        Scores are scaled by D ** -0.5. The arguments may be views with gaps between rows.
        """
        ...

    def capture(self, layer: int, hidden_RE: Tensor) -> None:
        """Hear the residual stream after decoder layer `layer`. It is not written to afterwards."""
        ...


class Model(Protocol):
    """A loaded model. Its output for a row depends only on the row's token, position and history."""

    config: ModelConfig
    cache_specs: tuple[CacheSpec, ...]  # one per layer
    dtype: torch.dtype
    device: torch.device

    def forward(self, tokens_R: Tensor, ctx: RoundContext) -> Tensor:
        """int64 [R] to hidden states after the final norm, [R, E] in the model's dtype. Call in inference mode."""
        ...

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """float32 [R, V] of some rows of what `forward` gave."""
        ...


class Weights(Protocol):
    """The tensors of a checkpoint under Hugging Face's names, in the model's dtype, each read once.

    `shape` is what the config asks for.

    Raises:
        ConfigError: a tensor is missing or has another shape; the message names it.
    """

    def has(self, name: str) -> bool: ...

    def plain(self, name: str, *shape: int) -> Tensor: ...

    def packed(self, *parts: tuple[str, int, int]) -> PackedWeight:
        """One linear layer of several tensors (name, outputs, inputs), outputs side by side."""
        ...

    def packed_float32(self, name: str, *shape: int) -> PackedWeight:
        """A linear layer that computes in float32 whatever the model's dtype."""
        ...

    def packed_experts(self, name: str, num_experts: int, *shape: int) -> Sequence[PackedWeight]:
        """The experts of one tensor [experts, outputs, inputs], as linear layers."""
        ...

    def shared(self, plain: Tensor) -> PackedWeight:
        """A linear layer that reads a plain tensor where it lies."""
        ...
