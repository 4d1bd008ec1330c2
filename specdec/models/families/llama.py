"""Llama 2 and 3, SmolLM2, TinyLlama and whatever else calls itself llama."""

from specdec.models.base import Weights
from specdec.models.config import Fields, ModelConfig, read_common
from specdec.models.layers.decoder import Decoder, build_decoder
from specdec.models.layers.mlp import build_gated_mlp


def read_config(fields: Fields) -> ModelConfig:
    """See `registry.Family.read_config`."""
    bias = bool(fields.get("attention_bias", False))
    return read_common(fields, "llama", qkv_bias=bias, output_bias=bias, mlp_bias=bool(fields.get("mlp_bias", False)))


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """See `registry.Family.build`."""
    return build_decoder(config, weights, mlp=lambda layer, _: build_gated_mlp(config, weights, f"{layer}.mlp"))
