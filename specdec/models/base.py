"""What a model offers a round, and what it reads besides its rows.

Legend of shape suffixes: R rows, E hidden size, H query heads, K key heads, D head size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight
from specdec.kernels.moe import Experts
from specdec.models.config import ModelConfig
from specdec.models.layers.heads import Heads

__all__ = ["AttentionSpec", "CacheSpec", "Heads", "Model", "ModelConfig", "RecurrentSpec", "RoundContext", "Weights"]


class CacheSpec:
    """What a layer keeps between rounds. Each kind of cache in `specdec.cache` has a spec of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec(CacheSpec):
    """A key and a value of each position, for each key head."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None  # positions that a row looks back; None: all


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentSpec(CacheSpec):
    """A state that each token moves on, float32, and of the last tokens what a step reads of them.

    state_shape: of one sequence. row_width: numbers that a step reads of each token, kept as keys and values are. taps: tokens
    that a step reads of, its own counted.
    """

    state_shape: tuple[int, ...]
    row_width: int
    taps: int = 1


class RoundContext(Protocol):
    """The round as a forward pass sees it."""

    def cache(self, layer: int) -> Any:
        """This round's view of what a layer keeps; its methods are those of the layer's kind of cache."""
        ...

    def capture(self, name: str, hidden_RE: Tensor) -> None:
        """Hear a hidden state by its name: `embedding`, or `layers.<i>` for the residual stream after decoder layer i. It is
        not written to afterwards."""
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

    def embed(self, tokens_R: Tensor) -> Tensor:
        """int64 [R] to what the first layer reads of them, [R, E]; for drafters, which embed tokens of their own."""
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
