"""Attention: projections around what the round's context does.

Legend of shape suffixes: R rows, E hidden size, K inputs and N outputs of a linear layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight, linear
from specdec.models.base import AttentionSpec, CacheSpec, Heads, ModelConfig, RoundContext, Weights
from specdec.models.layers.norms import HeadNorm, QkNorm
from specdec.models.layers.rope import Rope


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, with or without a bias."""

    weight: PackedWeight
    bias: Tensor | None = None

    def __call__(self, x_RK: Tensor, residual_RN: Tensor | None = None) -> Tensor:
        return linear(x_RK, self.weight, self.bias, residual_RN)


class Mixer(Protocol):
    """The first half of a decoder layer, where a row reads of other rows: attention, or a recurrence in its place."""

    @property
    def cache_spec(self) -> CacheSpec:
        """What it keeps between rounds."""
        ...

    def __call__(self, x_RE: Tensor, residual_RE: Tensor, layer: int, ctx: RoundContext) -> Tensor:
        """The residual stream with the layer's output added, [R, E]. x_RE: the stream behind the layer's norm."""
        ...


@dataclass(frozen=True, slots=True)
class Attention:
    """Projections; the context does the rest. See `Mixer`."""

    qkv: Linear
    output: Linear
    heads: Heads

    @property
    def cache_spec(self) -> AttentionSpec:
        return AttentionSpec(num_kv_heads=self.heads.num_kv_heads, head_dim=self.heads.head_dim)

    def __call__(self, x_RE: Tensor, residual_RE: Tensor, layer: int, ctx: RoundContext) -> Tensor:
        """The residual stream with the layer's output added, [R, E]."""
        return self.output(ctx.cache(layer).attend(self.qkv(x_RE), self.heads), residual_RE)


def build_attention(
    config: ModelConfig, weights: Weights, prefix: str, rope: Rope, qk_norm: Callable[[str], QkNorm] | None
) -> Attention:
    """Read the tensors of one attention layer."""
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = (("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size))
    qkv = weights.packed(*((f"{prefix}.{name}.weight", size, config.hidden_size) for name, size in sizes))
    biases = [weights.plain(f"{prefix}.{name}.bias", size) for name, size in sizes] if config.qkv_bias else []
    output_bias = weights.plain(f"{prefix}.o_proj.bias", config.hidden_size) if config.output_bias else None
    return Attention(
        qkv=Linear(qkv, torch.cat(biases) if biases else None),
        output=Linear(weights.packed((f"{prefix}.o_proj.weight", config.hidden_size, q_size)), output_bias),
        heads=Heads(
            rope=rope,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            qk_norm=qk_norm(prefix) if qk_norm else None,
            clip=config.clip_qkv,
        ),
    )


def build_head_norm(config: ModelConfig, weights: Weights, attention: str) -> HeadNorm:
    """Read the query and key norms that work per head."""
    q = weights.plain(f"{attention}.q_norm.weight", config.head_dim).repeat(config.num_heads)
    k = weights.plain(f"{attention}.k_norm.weight", config.head_dim).repeat(config.num_kv_heads)
    return HeadNorm(torch.cat((q, k)), config.head_dim, config.rms_norm_eps)
