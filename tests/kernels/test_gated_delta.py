"""The step of Gated DeltaNet: what it computes, and that an element's bits do not depend on where it lies."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.gated_delta.reference import halving_sum
from tests.kernels.recurrence import KEY, KEY_HEADS, STEP, TAPS, VALUE, VALUE_HEADS, WEIGHTS, WIDTH


def draw_rows(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1))


def test_the_step_is_the_delta_rule() -> None:
    """Against the paper's recurrence, written once more in float64 with transposed states."""
    keys, padded_RW = KEY_HEADS * KEY, torch.cat((torch.zeros(TAPS - 1, WIDTH), draw_rows(12)))
    state = torch.zeros(1, *WEIGHTS.state_shape)
    state_HVK = torch.zeros(VALUE_HEADS, VALUE, KEY, dtype=torch.float64)
    for row in range(12):
        state, found = STEP.advance(state, *STEP.read(padded_RW[None, row : row + TAPS]))
        window_JW = padded_RW[row : row + TAPS].double()
        own, mixed = window_JW[-1], F.silu((window_JW[:, : -2 * VALUE_HEADS] * WEIGHTS.conv_CJ.T).sum(0))
        q_HK, k_HK = (
            F.normalize(part.view(KEY_HEADS, KEY), dim=1).repeat_interleave(VALUE_HEADS // KEY_HEADS, 0)
            for part in (mixed[:keys], mixed[keys : 2 * keys])
        )
        v_HV, beta_H11 = mixed[2 * keys :].view(VALUE_HEADS, VALUE), own[-8:-4].sigmoid()[:, None, None]
        alpha_H = torch.exp(-WEIGHTS.log_decay_H.double().exp() * F.softplus(own[-4:] + WEIGHTS.dt_bias_H))
        forget_HKK = torch.eye(KEY) - beta_H11 * k_HK[:, :, None] * k_HK[:, None]
        state_HVK = alpha_H[:, None, None] * state_HVK @ forget_HKK + beta_H11 * v_HV[:, :, None] * k_HK[:, None]
        wanted_HV = (state_HVK @ q_HK[:, :, None] * KEY**-0.5)[:, :, 0]
        torch.testing.assert_close(found[0].double(), wanted_HV.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_sum_by_halves_is_the_same_in_every_slice(columns: int) -> None:
    values = torch.randn(5, 64, 12, generator=torch.Generator().manual_seed(3))
    whole = halving_sum(values, 1)
    parts = [halving_sum(values[:, :, first : first + columns], 1) for first in range(0, 12, columns)]
    assert torch.equal(torch.cat(parts, 1), whole)
    torch.testing.assert_close(whole, values.sum(1))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_steps_side_by_side_have_the_bits_of_each_alone(count: int) -> None:
    windows_NJW, states = draw_rows(21, TAPS), torch.randn(21, *WEIGHTS.state_shape, generator=torch.Generator().manual_seed(2))
    whole = STEP.advance(states, *STEP.read(windows_NJW))
    for first in range(0, 21, count):
        part = slice(first, first + count)
        alone = STEP.advance(states[part], *STEP.read(windows_NJW[part]))
        assert all(torch.equal(a, b[part]) for a, b in zip(alone, whole, strict=True))
