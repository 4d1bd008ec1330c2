"""A small Gated DeltaNet layer that tests of the step and of the walk share."""

import torch

from specdec.kernels.gated_delta import GatedDelta
from specdec.kernels.gated_delta.reference import GatedDeltaStep

TAPS, KEY_HEADS, VALUE_HEADS, KEY, VALUE = 4, 2, 4, 8, 6


def _weights() -> GatedDelta:
    draw = torch.Generator().manual_seed(0)
    return GatedDelta(
        conv_CJ=torch.randn(2 * KEY_HEADS * KEY + VALUE_HEADS * VALUE, TAPS, generator=draw) * 0.5,
        log_decay_H=torch.rand(VALUE_HEADS, generator=draw) * 3 - 2,
        dt_bias_H=torch.randn(VALUE_HEADS, generator=draw) * 0.5,
        num_key_heads=KEY_HEADS,
        key_dim=KEY,
        value_dim=VALUE,
    )


WEIGHTS = _weights()
STEP = GatedDeltaStep(WEIGHTS)
WIDTH = WEIGHTS.row_width
