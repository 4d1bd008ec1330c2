"""Qwen3, dense: each query and key head behind a norm of its own."""

from specdec.models.base import Weights
from specdec.models.config import Fields, ModelConfig, count, read_common
from specdec.models.layers.attention import build_head_norm
from specdec.models.layers.decoder import Decoder, build_decoder
from specdec.models.layers.mlp import build_gated_mlp


def read_config(fields: Fields) -> ModelConfig:
    """See `registry.Family.read_config`."""
    bias = bool(fields.get("attention_bias", False))
    return read_common(fields, "qwen3", qkv_bias=bias, output_bias=bias, head_dim=count(fields, "head_dim", 128))


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """See `registry.Family.build`."""
    return build_decoder(
        config,
        weights,
        mlp=lambda layer, _: build_gated_mlp(config, weights, f"{layer}.mlp"),
        qk_norm=lambda attention: build_head_norm(config, weights, attention),
    )
