"""The decoder that most families are: mixers (mostly attention) and feed-forward layers around one residual stream.

Legend of shape suffixes: R rows, E hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.linear import PackedWeight, embed_and_norm, linear
from specdec.models.base import CacheSpec, ModelConfig, RoundContext, Weights
from specdec.models.layers.attention import Mixer, build_attention
from specdec.models.layers.mlp import FeedForward
from specdec.models.layers.norms import QkNorm, RmsNorm
from specdec.models.layers.rope import Rope
from specdec.models.names import EMBEDDING, HEAD


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """A mixer and a feed-forward, each behind its norm, each added to the stream."""

    mixer_norm: RmsNorm
    mixer: Mixer
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
        self.cache_specs: tuple[CacheSpec, ...] = tuple(layer.mixer.cache_spec for layer in layers)
        self.dtype = embedding_VE.dtype
        self.device = embedding_VE.device
        self._embedding_VE = embedding_VE
        self._layers = tuple(layers)
        self._norms_after = (*(layer.mixer_norm for layer in layers[1:]), norm)
        self._head = head

    def forward(self, tokens_R: Tensor, ctx: RoundContext) -> Tensor:
        """See `Model.forward`."""
        first_norm = self._layers[0].mixer_norm
        stream_RE, normed_RE = embed_and_norm(tokens_R, self._embedding_VE, first_norm.weight, first_norm.eps)
        ctx.capture("embedding", stream_RE)
        for index, (layer, norm_after) in enumerate(zip(self._layers, self._norms_after, strict=True)):
            stream_RE = layer.mixer(normed_RE, stream_RE, index, ctx)
            stream_RE, normed_RE = layer.mlp(stream_RE, layer.mlp_norm, norm_after)
            ctx.capture(f"layers.{index}", stream_RE)
        return normed_RE

    def embed(self, tokens_R: Tensor) -> Tensor:
        """See `Model.embed`."""
        return F.embedding(tokens_R, self._embedding_VE)

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """See `Model.logits`."""
        return linear(hidden_RE, self._head, out_dtype=torch.float32)


def build_decoder(
    config: ModelConfig,
    weights: Weights,
    *,
    mlp: Callable[[str, int], FeedForward],
    qk_norm: Callable[[str], QkNorm] | None = None,
    mixer: Callable[[str, int], Mixer | None] | None = None,
) -> Decoder:
    """Read a decoder's tensors, layer by layer.

    Args:
        mlp: makes the feed-forward of a layer, given the layer's prefix and index.
        qk_norm: makes the norm of queries and keys, given the attention's prefix.
        mixer: makes what a layer has in place of attention, given the layer's prefix and index; None where it has attention.
    """
    embedding_VE = weights.plain(EMBEDDING, config.vocab_size, config.hidden_size)
    rope = Rope(config.rope, config.head_dim, config.max_position_embeddings, embedding_VE.dtype, embedding_VE.device)

    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights.plain(f"{name}.weight", config.hidden_size), config.rms_norm_eps)

    layers = []
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}"
        own = mixer(prefix, index) if mixer else None
        own = own or build_attention(config, weights, f"{prefix}.self_attn", rope, qk_norm)
        layers.append(
            DecoderLayer(norm(f"{prefix}.input_layernorm"), own, norm(f"{prefix}.post_attention_layernorm"), mlp(prefix, index))
        )
    if config.tie_word_embeddings:
        head = weights.shared(embedding_VE)
    else:
        head = weights.packed((HEAD, config.vocab_size, config.hidden_size))
    return Decoder(config, embedding_VE, layers, norm("model.norm"), head)
