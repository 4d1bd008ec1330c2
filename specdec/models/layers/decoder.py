"""The decoder that most families are: attention and feed-forward layers around one residual stream.

Legend of shape suffixes: R rows, E hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight, embed_and_norm, linear
from specdec.models.base import AttentionSpec, CacheSpec, ModelConfig, RoundContext, Weights
from specdec.models.layers.attention import Attention, build_attention
from specdec.models.layers.mlp import FeedForward
from specdec.models.layers.norms import QkNorm, RmsNorm
from specdec.models.layers.rope import Rope


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
        spec = AttentionSpec(num_kv_heads=config.num_kv_heads, head_dim=config.head_dim)
        self.cache_specs: tuple[CacheSpec, ...] = (spec,) * config.num_layers
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
        ctx.capture("embedding", stream_RE)
        for index, (layer, norm_after) in enumerate(zip(self._layers, self._norms_after, strict=True)):
            stream_RE = layer.attention(normed_RE, stream_RE, index, ctx)
            stream_RE, normed_RE = layer.mlp(stream_RE, layer.mlp_norm, norm_after)
            ctx.capture(f"layers.{index}", stream_RE)
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
