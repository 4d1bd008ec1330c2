"""Mixtral: Llama with sparse feed-forward layers."""

from specdec.models.base import Weights
from specdec.models.config import Fields, ModelConfig, MoeConfig, agreed, count, read_common
from specdec.models.layers.decoder import Decoder, build_decoder
from specdec.models.layers.mlp import FeedForward, build_sparse_mlp


def read_config(fields: Fields) -> ModelConfig:
    """See `registry.Family.read_config`."""
    moe = MoeConfig(
        num_experts=count({"num_local_experts": agreed(fields, "num_local_experts", "num_experts")}, "num_local_experts"),
        experts_per_token=count(fields, "num_experts_per_tok"),
        intermediate_size=count(fields, "intermediate_size"),
        renormalise=True,
    )
    return read_common(fields, "mixtral", default_theta=1e6, moe=moe)


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """See `registry.Family.build`."""

    def mlp(layer: str, _index: int) -> FeedForward:
        # checkpoints call it block_sparse_moe, transformers 5 holds it as mlp
        fused = weights.has(f"{layer}.mlp.gate.weight")
        return build_sparse_mlp(config, weights, f"{layer}.mlp" if fused else f"{layer}.block_sparse_moe", ("w1", "w3", "w2"))

    return build_decoder(config, weights, mlp=mlp)
