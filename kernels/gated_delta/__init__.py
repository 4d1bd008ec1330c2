"""Gated DeltaNet: a short causal convolution, gates, and a state that is corrected by what it would have answered.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (arXiv 2412.06464), as Qwen3-Next and Qwen3.5 have it.

Legend of shape suffixes: R rows, C channels of the convolution (2 G K + H V), G key heads, H value heads, K key size, V value
size, J taps, W numbers kept of a row (C + 2 H).
"""

from dataclasses import dataclass

from torch import Tensor

from specdec.kernels.gated_delta.reference import gated_delta_reference
from specdec.kernels.state_scan import StateStore, StateTables

__all__ = ["GatedDelta", "gated_delta"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDelta:
    """Weights and sizes; value head h reads key head h // (H / G).

    conv_CJ: float32, taps oldest first. log_decay_H: float32, `A_log`. dt_bias_H: float32.
    """

    conv_CJ: Tensor
    log_decay_H: Tensor
    dt_bias_H: Tensor
    num_key_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_value_heads(self) -> int:
        return len(self.log_decay_H)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """H, K, V."""
        return self.num_value_heads, self.key_dim, self.value_dim

    @property
    def row_width(self) -> int:
        """W."""
        return self.conv_CJ.shape[0] + 2 * self.num_value_heads


def gated_delta(rows_RW: Tensor, weights: GatedDelta, store: StateStore, tables: StateTables) -> Tensor:
    """The layer between its projections and its gated norm.

    For each token, in float32, with what came before it on its path:
        q, k, v = split(silu(conv(rows))); q, k /= norm, per head; q *= K ** -0.5
        alpha = exp(-exp(A_log) softplus(a + dt_bias)), beta = sigmoid(b)
        S' = alpha S + k d^T, d = beta (v - alpha S^T k); output = S'^T q

    One step, the same for every kind of row, its sums over K by halving; see README.md.

    Args:
        rows_RW: queries, keys and values before the convolution, then b and a, in the ring's dtype.
        weights: K is a power of two.
        store, tables: see `specdec.kernels.state_scan`; states are float32 [S, H, K, V].

    Returns:
        float32 [R, H * V].
    """
    assert weights.key_dim & (weights.key_dim - 1) == 0, "sums over the key size are halved"
    assert rows_RW.shape[1] == weights.row_width, (rows_RW.shape, weights.row_width)
    return gated_delta_reference(rows_RW, weights, store, tables)
