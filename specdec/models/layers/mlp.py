"""Feed-forward layers: gated, and mixtures of gated experts.

Legend of shape suffixes: R rows, E hidden size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdec.kernels.linear import PackedWeight
from specdec.kernels.moe import Experts, moe_between_norms
from specdec.kernels.swiglu import swiglu
from specdec.models.base import ModelConfig, Weights
from specdec.models.layers.attention import Linear
from specdec.models.layers.norms import RmsNorm


class FeedForward(Protocol):
    """The second half of a decoder layer."""

    def __call__(self, stream_RE: Tensor, norm: RmsNorm, next_norm: RmsNorm) -> tuple[Tensor, Tensor]:
        """The residual stream with the layer's output added, and that behind the norm which comes next; [R, E] each.

        norm: this layer's own, before it.
        """
        ...


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


def build_gated_mlp(config: ModelConfig, weights: Weights, prefix: str) -> GatedMlp:
    """Read the tensors of one dense feed-forward layer."""
    inner, outer = config.intermediate_size, config.hidden_size
    gate_up = weights.packed((f"{prefix}.gate_proj.weight", inner, outer), (f"{prefix}.up_proj.weight", inner, outer))
    down = weights.packed((f"{prefix}.down_proj.weight", outer, inner))
    if not config.mlp_bias:
        return GatedMlp(Linear(gate_up), Linear(down))
    gate_up_bias = torch.cat([weights.plain(f"{prefix}.{name}_proj.bias", inner) for name in ("gate", "up")])
    return GatedMlp(Linear(gate_up, gate_up_bias), Linear(down, weights.plain(f"{prefix}.down_proj.bias", outer)))


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
