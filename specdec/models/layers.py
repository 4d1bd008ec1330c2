"""The layers that the families are built from: plain data with a call, no parameters of torch's.

Legend of shape suffixes: R rows, E hidden size, K inputs and N outputs of a linear layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight, embed_and_norm, linear
from specdec.kernels.moe import Experts, moe_between_norms
from specdec.kernels.swiglu import swiglu
from specdec.models.base import CacheSpec, Heads, ModelConfig, RoundContext, Weights
from specdec.models.norms import HeadNorm, QkNorm, RmsNorm
from specdec.models.rope import Rope


class FeedForward(Protocol):
    """The second half of a decoder layer."""

    def __call__(self, stream_RE: Tensor, norm: RmsNorm, next_norm: RmsNorm) -> tuple[Tensor, Tensor]:
        """The residual stream with the layer's output added, and that behind the norm which comes next; [R, E] each.

        norm: this layer's own, before it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer, with or without a bias."""

    weight: PackedWeight
    bias: Tensor | None = None

    def __call__(self, x_RK: Tensor, residual_RN: Tensor | None = None) -> Tensor:
        return linear(x_RK, self.weight, self.bias, residual_RN)


@dataclass(frozen=True, slots=True)
class Attention:
    """Projections; the context does the rest."""

    qkv: Linear
    output: Linear
    heads: Heads

    def __call__(self, x_RE: Tensor, residual_RE: Tensor, layer: int, ctx: RoundContext) -> Tensor:
        """The residual stream with the layer's output added, [R, E]."""
        return self.output(ctx.attend(layer, self.qkv(x_RE), self.heads), residual_RE)


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """down(silu(gate(x)) * up(x)), gate and up as one product."""

    gate_up: Linear
    down: Linear

    def __call__(self, stream_RE: Tensor, norm: RmsNorm, next_norm: RmsNorm) -> tuple[Tensor, Tensor]:
        stream_RE = self.down(swiglu(self.gate_up(norm(stream_RE))), stream_RE)
        return stream_RE, next_norm(stream_RE)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseMlp:
    """Mixture of experts, each a gated feed-forward."""

    router: PackedWeight
    gate_up: Experts
    down: Experts
    experts_per_token: int
    renormalise: bool

    def __call__(self, stream_RE: Tensor, norm: RmsNorm, next_norm: RmsNorm) -> tuple[Tensor, Tensor]:
        return moe_between_norms(
            stream_RE,
            self.router,
            self.gate_up,
            self.down,
            self.experts_per_token,
            self.renormalise,
            norm_E=norm.weight,
            next_norm_E=next_norm.weight,
            eps=norm.eps,
        )


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
    ) -> None:
        self.config = config
        self.cache_specs = (CacheSpec(num_kv_heads=config.num_kv_heads, head_dim=config.head_dim),) * config.num_layers
        self.dtype = embedding_VE.dtype
        self.device = embedding_VE.device
        self._embedding_VE = embedding_VE
        self._layers = tuple(layers)
        self._norms_after = (*(layer.attention_norm for layer in layers[1:]), norm)
        self._head = head

    def forward(self, tokens_R: Tensor, ctx: RoundContext) -> Tensor:
        """See `Model.forward`."""
        first_norm = self._layers[0].attention_norm
        stream_RE, normed_RE = embed_and_norm(tokens_R, self._embedding_VE, first_norm.weight, first_norm.eps)
        for index, (layer, norm_after) in enumerate(zip(self._layers, self._norms_after, strict=True)):
            stream_RE = layer.attention(normed_RE, stream_RE, index, ctx)
            stream_RE, normed_RE = layer.mlp(stream_RE, layer.mlp_norm, norm_after)
            ctx.capture(index, stream_RE)
        return normed_RE

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """See `Model.logits`."""
        return linear(hidden_RE, self._head, out_dtype=torch.float32)


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
    rope = Rope(config.rope, config.head_dim, config.max_position_embeddings, embedding_VE.dtype, embedding_VE.device)

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
    return Decoder(config, embedding_VE, layers, norm("model.norm"), head)


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
    router = weights.router(f"{prefix}.gate.weight", num_experts, outer)
    experts = f"{prefix}.experts"
    if weights.has(f"{experts}.gate_up_proj"):
        gate_up = weights.experts(num_experts, (f"{experts}.gate_up_proj", 2 * inner, outer))
        down = weights.experts(num_experts, (f"{experts}.down_proj", outer, inner))
    else:
        gate, up, out = (f"{experts}.{{}}.{name}.weight" for name in names)
        gate_up = weights.experts(num_experts, (gate, inner, outer), (up, inner, outer))
        down = weights.experts(num_experts, (out, outer, inner))
    return SparseMlp(
        router=router,
        gate_up=gate_up,
        down=down,
        experts_per_token=config.moe.experts_per_token,
        renormalise=config.moe.renormalise,
    )
