"""Gated DeltaNet in plain PyTorch; see the package for the legend. N steps at once.

Only `exp`, `log1p`, `rsqrt` and the basic operations are used: on a CPU torch computes those alike wherever an element lies,
and sigmoid, silu and softplus not (see `kernels/swiglu/README.md`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec.kernels.state_scan import scan_states

if TYPE_CHECKING:
    from specdec.kernels.gated_delta import GatedDelta
    from specdec.kernels.state_scan import StateStore, StateTables

NORM_EPS = 1e-6  # of queries and keys


def gated_delta_reference(rows_RW: Tensor, weights: "GatedDelta", store: "StateStore", tables: "StateTables") -> Tensor:
    """As `specdec.kernels.gated_delta.gated_delta`."""
    return scan_states(rows_RW, GatedDeltaStep(weights), store, tables)


@dataclass(frozen=True, slots=True)
class GatedDeltaStep:
    """See `specdec.kernels.state_scan.Step`."""

    weights: "GatedDelta"

    def read(self, windows_NJW: Tensor) -> tuple[Tensor, ...]:
        """q, k [N, H, K], v [N, H, V], alpha, beta [N, H]."""
        weights = self.weights
        keys, values = weights.num_key_heads * weights.key_dim, weights.num_value_heads * weights.value_dim
        window_NJC = windows_NJW[:, :, : 2 * keys + values].float()
        b_NH, a_NH = windows_NJW[:, -1, 2 * keys + values :].float().chunk(2, 1)
        q, k, v = torch.split(_silu(_convolve(window_NJC, weights.conv_CJ)), [keys, keys, values], 1)
        groups = weights.num_value_heads // weights.num_key_heads
        q_NHK, k_NHK = (_unit(part.view(len(v), -1, weights.key_dim)).repeat_interleave(groups, 1) for part in (q, k))
        alpha_NH = torch.exp(-weights.log_decay_H.exp() * _softplus(a_NH + weights.dt_bias_H))
        return q_NHK * weights.key_dim**-0.5, k_NHK, v.view(len(v), -1, weights.value_dim), alpha_NH, _sigmoid(b_NH)

    def advance(self, states: Tensor, *read: Tensor) -> tuple[Tensor, Tensor]:
        """States [N, H, K, V]; both products read the state before the step, so that a kernel has them side by side."""
        q_NHK, k_NHK, v_NHV, alpha_NH, beta_NH = read
        answer_NHV = halving_sum(states * k_NHK[..., None], 2) * alpha_NH[..., None]
        seen_NHV = halving_sum(states * q_NHK[..., None], 2) * alpha_NH[..., None]
        delta_NHV = (v_NHV - answer_NHV) * beta_NH[..., None]
        after = states * alpha_NH[..., None, None] + k_NHK[..., None] * delta_NHV[..., None, :]
        outputs_NHV = seen_NHV + delta_NHV * halving_sum(q_NHK * k_NHK, 2)[..., None]
        return after, outputs_NHV.flatten(1)


def halving_sum(values: Tensor, dim: int) -> Tensor:
    """The sum over a dimension whose size is a power of two: the upper half is added to the lower until one is left. The order
    is the formula's, not a library's or a tile's."""
    while values.shape[dim] > 1:
        lower, upper = values.chunk(2, dim)
        values = lower + upper
    return values.squeeze(dim)


def _convolve(window_NJC: Tensor, conv_CJ: Tensor) -> Tensor:
    """[N, C]; taps are added oldest first."""
    sums_NC = window_NJC[:, 0] * conv_CJ[:, 0]
    for tap in range(1, conv_CJ.shape[1]):
        sums_NC = sums_NC + window_NJC[:, tap] * conv_CJ[:, tap]
    return sums_NC


def _unit(heads_NGK: Tensor) -> Tensor:
    return heads_NGK * torch.rsqrt(halving_sum(heads_NGK * heads_NGK, 2) + NORM_EPS)[..., None]


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))
