"""What a model offers the runner, and what it reads besides its rows.

Legend of shape suffixes: R rows, E hidden size, H query heads, K key heads, D head size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight
from specdec.kernels.moe import Experts
from specdec.models.config import ModelConfig
from specdec.models.layers.heads import Heads

__all__ = ["CacheSpec", "Heads", "Model", "ModelConfig", "RoundContext", "Weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSpec:
    """What an attention layer keeps per position: a key and a value for each key head."""

    kind: Literal["attention"] = "attention"
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # positions that a row looks back; None: all


class RoundContext(Protocol):
    """The round as a forward pass sees it. The runner implements it."""

    def attend(self, layer: int, qkv_RC: Tensor, heads: Heads) -> Tensor:
        """Rotate the heads, keep keys and values in the layer's cache, and let each row attend over its own history, itself
        included. Scores are scaled by D ** -0.5.

        Args:
            qkv_RC: [R, (H + 2 K) * D], contiguous.
            heads: what makes heads of it.

        Returns:
            [R, H * D], contiguous.
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

    def router(self, name: str, *shape: int) -> PackedWeight:
        """A linear layer whose products are summed in float32 and not rounded, whatever the model's dtype."""
        ...

    def experts(self, num_experts: int, *parts: tuple[str, int, int]) -> Experts:
        """The same linear layer of every expert, as `packed`. A name with `{}` stands for one tensor per expert, a name without
        for one that holds all experts, [experts, outputs, inputs].
        """
        ...

    def shared(self, plain: Tensor) -> PackedWeight:
        """A linear layer that reads a plain tensor where it lies."""
        ...
