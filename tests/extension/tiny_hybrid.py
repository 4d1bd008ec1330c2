"""A family as somebody may add it: attention in some layers, Gated DeltaNet in the others.

Legend of shape suffixes: R rows, E hidden size, C channels of the convolution, H value heads, V value size, J taps, W numbers
kept of a row.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from specdec.kernels.gated_delta import GatedDelta, gated_delta
from specdec.kernels.linear import rms_norm
from specdec.kernels.state_scan import StateStore, StateTables
from specdec.kernels.swiglu import swiglu
from specdec.models.base import CacheSpec, RecurrentSpec, RoundContext, Weights
from specdec.models.config import Fields, ModelConfig, read_common, required
from specdec.models.layers.attention import Linear
from specdec.models.layers.decoder import Decoder, build_decoder
from specdec.models.layers.mlp import build_gated_mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig(ModelConfig):
    """What the other families have no fields for."""

    recurrent_layers: tuple[bool, ...]
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    taps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDeltaMixer:
    """Projections and a gated norm around the recurrence. See `specdec.models.layers.attention.Mixer`."""

    inputs: Linear  # queries, keys and values before the convolution, then b, a and z
    output: Linear
    weights: GatedDelta
    norm_V: Tensor
    eps: float

    @property
    def cache_spec(self) -> CacheSpec:
        weights = self.weights
        return RecurrentSpec(state_shape=weights.state_shape, row_width=weights.row_width, taps=weights.conv_CJ.shape[1])

    def __call__(self, x_RE: Tensor, residual_RE: Tensor, layer: int, ctx: RoundContext) -> Tensor:
        """See `Mixer.__call__`."""
        rows, gates = self.inputs(x_RE).tensor_split([self.weights.row_width], 1)

        def scan(rows_RW: Tensor, store: StateStore, tables: StateTables) -> Tensor:
            return gated_delta(rows_RW, self.weights, store, tables)

        out = ctx.cache(layer).scan(rows, scan).to(x_RE.dtype)
        normed = rms_norm(out.view(-1, self.weights.value_dim), self.norm_V, self.eps).view_as(out)
        return self.output(swiglu(torch.cat((gates, normed), 1)), residual_RE)


def read_config(fields_: Fields) -> HybridConfig:
    """See `registry.Family.read_config`."""
    kinds = required(fields_, "layer_types")
    common = read_common({name: value for name, value in fields_.items() if name != "layer_types"}, "tiny_hybrid")
    return HybridConfig(
        **{field.name: getattr(common, field.name) for field in fields(common)},
        recurrent_layers=tuple(kind == "linear_attention" for kind in kinds),
        num_key_heads=required(fields_, "linear_num_key_heads"),
        num_value_heads=required(fields_, "linear_num_value_heads"),
        key_dim=required(fields_, "linear_key_head_dim"),
        value_dim=required(fields_, "linear_value_head_dim"),
        taps=required(fields_, "linear_conv_kernel_dim"),
    )


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """See `registry.Family.build`."""
    assert isinstance(config, HybridConfig)

    def mixer(layer: str, index: int) -> GatedDeltaMixer | None:
        return _build_mixer(config, weights, f"{layer}.linear_attn") if config.recurrent_layers[index] else None

    return build_decoder(config, weights, mlp=lambda layer, _: build_gated_mlp(config, weights, f"{layer}.mlp"), mixer=mixer)


def _build_mixer(config: HybridConfig, weights: Weights, prefix: str) -> GatedDeltaMixer:
    outer, heads, values = config.hidden_size, config.num_value_heads, config.num_value_heads * config.value_dim
    channels = 2 * config.num_key_heads * config.key_dim + values
    inputs = (("in_proj_qkv", channels), ("in_proj_b", heads), ("in_proj_a", heads), ("in_proj_z", values))
    recurrence = GatedDelta(
        conv_CJ=weights.plain(f"{prefix}.conv1d.weight", channels, 1, config.taps)[:, 0].float(),
        log_decay_H=weights.plain(f"{prefix}.A_log", heads).float(),
        dt_bias_H=weights.plain(f"{prefix}.dt_bias", heads).float(),
        num_key_heads=config.num_key_heads,
        key_dim=config.key_dim,
        value_dim=config.value_dim,
    )
    return GatedDeltaMixer(
        inputs=Linear(weights.packed(*((f"{prefix}.{name}.weight", size, outer) for name, size in inputs))),
        output=Linear(weights.packed((f"{prefix}.out_proj.weight", outer, values))),
        weights=recurrence,
        norm_V=weights.plain(f"{prefix}.norm.weight", config.value_dim),
        eps=config.rms_norm_eps,
    )
