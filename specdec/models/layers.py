"""The layers that the families are built from: plain data with a call, no parameters of torch's.

Legend of shape suffixes: R rows, E hidden size, H query heads, K key heads, B query and key heads together (H + K),
D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.linear import PackedWeight, linear
from specdec.kernels.moe import moe
from specdec.kernels.swiglu import swiglu
from specdec.models.base import CacheSpec, ModelConfig, RoundContext, Weights
from specdec.models.rope import Rope, Rotation

# takes and returns queries and keys side by side, [R, B * D]
QkNorm = Callable[[Tensor], Tensor]


class FeedForward(Protocol):
    """The second half of a decoder layer, [R, E] to [R, E]."""

    def __call__(self, x_RE: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / rms(x) * weight over the last dimension, computed in float32 inside."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, with or without a bias."""

    weight: PackedWeight
    bias: Tensor | None = None

    def __call__(self, x_RK: Tensor) -> Tensor:
        return linear(x_RK, self.weight, self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Projections and rotation; the context does the rest."""

    qkv: Linear
    output: Linear
    rope: Rope
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qk_norm: QkNorm | None = None
    clip: float | None = None

    def __call__(self, x_RE: Tensor, layer: int, rotation: Rotation, ctx: RoundContext) -> Tensor:
        num_rows, num_qk = x_RE.shape[0], self.num_heads + self.num_kv_heads
        qkv = self.qkv(x_RE)
        qk, v = torch.split(qkv, [num_qk * self.head_dim, self.num_kv_heads * self.head_dim], -1)
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if self.clip is not None:
            qk, v = qk.clamp(-self.clip, self.clip), v.clamp(-self.clip, self.clip)
        qk_RBD = self.rope.rotate(qk.view(num_rows, num_qk, self.head_dim), rotation)
        q_RHD, k_RKD = torch.split(qk_RBD, [self.num_heads, self.num_kv_heads], 1)
        out_RHD = ctx.attend(layer, q_RHD, k_RKD, v.view(num_rows, self.num_kv_heads, self.head_dim))
        return self.output(out_RHD.reshape(num_rows, -1))


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """An RMS norm of each query and key head by itself. weight [B * D]: the queries' and keys' weights, head by head."""

    weight: Tensor
    head_dim: int
    eps: float

    def __call__(self, qk: Tensor) -> Tensor:
        heads = F.rms_norm(qk.view(qk.shape[0], -1, self.head_dim), (self.head_dim,), None, self.eps)
        return heads.view(qk.shape[0], -1) * self.weight


@dataclass(frozen=True, slots=True)
class ProjectionNorm:
    """An RMS norm of all queries together, and one of all keys."""

    q: RmsNorm
    k: RmsNorm

    def __call__(self, qk: Tensor) -> Tensor:
        q, k = torch.split(qk, [len(self.q.weight), len(self.k.weight)], -1)
        return torch.cat((self.q(q), self.k(k)), -1)


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """down(silu(gate(x)) * up(x)), gate and up as one product."""

    gate_up: Linear
    down: Linear

    def __call__(self, x_RE: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x_RE)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseMlp:
    """Mixture of experts, each a gated feed-forward."""

    router: PackedWeight
    gate_up: Sequence[PackedWeight]
    down: Sequence[PackedWeight]
    experts_per_token: int
    renormalise: bool

    def __call__(self, x_RE: Tensor) -> Tensor:
        return moe(x_RE, self.router, self.gate_up, self.down, self.experts_per_token, self.renormalise)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Attention and feed-forward, each behind its norm, each added to the stream."""

    attention_norm: RmsNorm
    attention: Attention
    mlp_norm: RmsNorm
    mlp: FeedForward


class Decoder:
    """A decoder-only transformer: the model of every family here."""

    def __init__(
        self,
        config: ModelConfig,
        embedding_VE: Tensor,
        layers: Sequence[DecoderLayer],
        norm: RmsNorm,
        head: PackedWeight,
        rope: Rope,
    ) -> None:
        self.config = config
        self.cache_specs = (CacheSpec(num_kv_heads=config.num_kv_heads, head_dim=config.head_dim),) * config.num_layers
        self.dtype = embedding_VE.dtype
        self.device = embedding_VE.device
        self._embedding_VE = embedding_VE
        self._layers = tuple(layers)
        self._norm = norm
        self._head = head
        self._rope = rope

    def forward(self, tokens_R: Tensor, ctx: RoundContext) -> Tensor:
        """See `Model.forward`."""
        rotation = self._rope.rotation(ctx.positions_R)
        hidden_RE = F.embedding(tokens_R, self._embedding_VE)
        for index, layer in enumerate(self._layers):
            hidden_RE = hidden_RE + layer.attention(layer.attention_norm(hidden_RE), index, rotation, ctx)
            hidden_RE = hidden_RE + layer.mlp(layer.mlp_norm(hidden_RE))
            ctx.capture(index, hidden_RE)
        return self._norm(hidden_RE)

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """See `Model.logits`."""
        return linear(hidden_RE, self._head).float()


def build_decoder(
    config: ModelConfig,
    weights: Weights,
    *,
    mlp: Callable[[str, int], FeedForward],
    qk_norm: Callable[[str], QkNorm] | None = None,
) -> Decoder:
    """Read a decoder's tensors, layer by layer.

    Args:
        mlp: makes the feed-forward of a layer, given the layer's prefix and index.
        qk_norm: makes the norm of queries and keys, given the attention's prefix.
    """
    embedding_VE = weights.plain("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    rope = Rope(config.rope, config.head_dim, embedding_VE.dtype, embedding_VE.device)

    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights.plain(f"{name}.weight", config.hidden_size), config.rms_norm_eps)

    layers = []
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}"
        attention = build_attention(config, weights, f"{prefix}.self_attn", rope, qk_norm)
        layers.append(
            DecoderLayer(
                norm(f"{prefix}.input_layernorm"), attention, norm(f"{prefix}.post_attention_layernorm"), mlp(prefix, index)
            )
        )
    if config.tie_word_embeddings:
        head = weights.shared(embedding_VE)
    else:
        head = weights.packed(("lm_head.weight", config.vocab_size, config.hidden_size))
    return Decoder(config, embedding_VE, layers, norm("model.norm"), head, rope)


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
        rope=rope,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        qk_norm=qk_norm(prefix) if qk_norm else None,
        clip=config.clip_qkv,
    )


def build_gated_mlp(config: ModelConfig, weights: Weights, prefix: str) -> GatedMlp:
    """Read the tensors of one dense feed-forward layer."""
    inner, outer = config.intermediate_size, config.hidden_size
    gate_up = weights.packed((f"{prefix}.gate_proj.weight", inner, outer), (f"{prefix}.up_proj.weight", inner, outer))
    down = weights.packed((f"{prefix}.down_proj.weight", outer, inner))
    if not config.mlp_bias:
        return GatedMlp(Linear(gate_up), Linear(down))
    gate_up_bias = torch.cat([weights.plain(f"{prefix}.{name}_proj.bias", inner) for name in ("gate", "up")])
    return GatedMlp(Linear(gate_up, gate_up_bias), Linear(down, weights.plain(f"{prefix}.down_proj.bias", outer)))


def build_head_norm(config: ModelConfig, weights: Weights, attention: str) -> HeadNorm:
    """Read the query and key norms that work per head."""
    q = weights.plain(f"{attention}.q_norm.weight", config.head_dim).repeat(config.num_heads)
    k = weights.plain(f"{attention}.k_norm.weight", config.head_dim).repeat(config.num_kv_heads)
    return HeadNorm(torch.cat((q, k)), config.head_dim, config.rms_norm_eps)


def build_sparse_mlp(config: ModelConfig, weights: Weights, prefix: str, names: tuple[str, str, str]) -> SparseMlp:
    """Read the router and the experts of one layer, expert by expert or fused as transformers 5 holds them.

    Args:
        names: what a single expert's gate, up and down projections are called.
    """
    assert config.moe is not None
    num_experts, inner, outer = config.moe.num_experts, config.moe.intermediate_size, config.hidden_size
    router = weights.packed_float32(f"{prefix}.gate.weight", num_experts, outer)
    experts = f"{prefix}.experts"
    gate_up: Sequence[PackedWeight]
    down: Sequence[PackedWeight]
    if weights.has(f"{experts}.gate_up_proj"):
        gate_up = weights.packed_experts(f"{experts}.gate_up_proj", num_experts, 2 * inner, outer)
        down = weights.packed_experts(f"{experts}.down_proj", num_experts, outer, inner)
    else:
        gate, up, out = names
        gate_up = [
            weights.packed((f"{experts}.{i}.{gate}.weight", inner, outer), (f"{experts}.{i}.{up}.weight", inner, outer))
            for i in range(num_experts)
        ]
        down = [weights.packed((f"{experts}.{i}.{out}.weight", outer, inner)) for i in range(num_experts)]
    return SparseMlp(
        router=router,
        gate_up=gate_up,
        down=down,
        experts_per_token=config.moe.experts_per_token,
        renormalise=config.moe.renormalise,
    )
