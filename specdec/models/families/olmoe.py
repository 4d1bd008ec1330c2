"""OLMoE: sparse feed-forward layers; all queries together and all keys together behind a norm; optional clipping."""

from specdec.models.base import Weights
from specdec.models.config import Fields, ModelConfig, MoeConfig, agreed, count, read_common
from specdec.models.layers.decoder import Decoder, build_decoder
from specdec.models.layers.mlp import build_sparse_mlp
from specdec.models.layers.norms import ProjectionNorm, RmsNorm


def read_config(fields: Fields) -> ModelConfig:
    """See `registry.Family.read_config`."""
    bias = bool(fields.get("attention_bias", False))
    moe = MoeConfig(
        num_experts=count({"num_experts": agreed(fields, "num_experts", "num_local_experts")}, "num_experts"),
        experts_per_token=count(fields, "num_experts_per_tok"),
        intermediate_size=count(fields, "intermediate_size"),
        renormalise=bool(fields.get("norm_topk_prob", False)),
    )
    return read_common(fields, "olmoe", qkv_bias=bias, output_bias=bias, clip_qkv=fields.get("clip_qkv"), moe=moe)


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """See `registry.Family.build`."""

    def qk_norm(attention: str) -> ProjectionNorm:
        q = weights.plain(f"{attention}.q_norm.weight", config.num_heads * config.head_dim)
        k = weights.plain(f"{attention}.k_norm.weight", config.num_kv_heads * config.head_dim)
        return ProjectionNorm(RmsNorm(q, config.rms_norm_eps), RmsNorm(k, config.rms_norm_eps))

    return build_decoder(
        config,
        weights,
        mlp=lambda layer, _: build_sparse_mlp(config, weights, f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj")),
        qk_norm=qk_norm,
    )
