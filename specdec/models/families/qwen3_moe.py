"""Qwen3's Mixture-of-Experts models: Qwen3 with sparse feed-forward layers, a few of which may be dense."""

from specdec.models.base import Weights
from specdec.models.config import Fields, ModelConfig, MoeConfig, agreed, count, read_common
from specdec.models.layers.attention import build_head_norm
from specdec.models.layers.decoder import Decoder, build_decoder
from specdec.models.layers.mlp import FeedForward, build_gated_mlp, build_sparse_mlp


def read_config(fields: Fields) -> ModelConfig:
    """See `registry.Family.read_config`."""
    bias = bool(fields.get("attention_bias", False))
    step = fields.get("decoder_sparse_step") or 1
    num_layers = count(fields, "num_hidden_layers")
    moe = MoeConfig(
        num_experts=count({"num_experts": agreed(fields, "num_experts", "num_local_experts")}, "num_experts"),
        experts_per_token=count(fields, "num_experts_per_tok"),
        intermediate_size=count(fields, "moe_intermediate_size"),
        renormalise=bool(fields.get("norm_topk_prob", False)),
        dense_layers=frozenset(fields.get("mlp_only_layers") or ()) | {i for i in range(num_layers) if (i + 1) % step},
    )
    return read_common(fields, "qwen3_moe", qkv_bias=bias, output_bias=bias, moe=moe)


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """See `registry.Family.build`."""
    assert config.moe is not None
    dense_layers = config.moe.dense_layers

    def mlp(layer: str, index: int) -> FeedForward:
        if index in dense_layers:
            return build_gated_mlp(config, weights, f"{layer}.mlp")
        return build_sparse_mlp(config, weights, f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj"))

    return build_decoder(config, weights, mlp=mlp, qk_norm=lambda attention: build_head_norm(config, weights, attention))
