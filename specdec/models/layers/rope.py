"""Rotary position embedding, with the scalings that Llama 3.1 and YaRN (arXiv 2309.00071) brought.

Legend of shape suffixes: R rows, H query and key heads together, D head size, F frequencies (D / 2).
"""

import functools
import math

import torch
from torch import Tensor

from specdec.models.rope_config import RopeConfig

Rotation = tuple[Tensor, Tensor]  # cos and sin, [R, 1, D] each


class Rope:
    """Rotates heads by their position; angles are computed per round, or looked up in a table of all positions."""

    def __init__(self, config: RopeConfig, head_dim: int, num_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies_F = frequencies(config, head_dim).to(device)
        self._scale = attention_factor(config)
        self._half = head_dim // 2
        self._num_positions = num_positions
        self._dtype = dtype

    @functools.cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """cos and sin of every position, float32 [positions, F]; made when first asked for."""
        angles_PF = torch.arange(self._num_positions, device=self._frequencies_F.device)[:, None].float() * self._frequencies_F
        return angles_PF.cos() * self._scale, angles_PF.sin() * self._scale

    def rotation(self, positions_R: Tensor) -> Rotation:
        """What `rotate` needs for rows at these positions (int64 [R]); angles in float32, results in the model's dtype.

        The first half of sin carries the minus sign of the rotation.
        """
        angles_RF = positions_R[:, None].float() * self._frequencies_F
        cos_RF, sin_RF = angles_RF.cos(), angles_RF.sin()
        if self._scale != 1.0:
            cos_RF, sin_RF = cos_RF * self._scale, sin_RF * self._scale
        cos_RD = torch.cat((cos_RF, cos_RF), -1)
        sin_RD = torch.cat((-sin_RF, sin_RF), -1)
        return cos_RD.to(self._dtype)[:, None], sin_RD.to(self._dtype)[:, None]

    def rotate(self, heads_RHD: Tensor, rotation: Rotation) -> Tensor:
        """The heads turned, [R, H, D]; element i pairs with element i + D / 2."""
        cos_R1D, sin_R1D = rotation
        return torch.addcmul(heads_RHD * cos_R1D, heads_RHD.roll(self._half, -1), sin_R1D)


def frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """float32 [head_dim / 2], radians per position."""
    exponents_F = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain_F = 1.0 / (config.theta**exponents_F)
    if config.divisors:
        plain_F = plain_F / torch.tensor(config.divisors)
    if config.kind == "linear":
        return plain_F / config.factor
    if config.kind == "llama3":
        return _llama3(config, plain_F)
    if config.kind == "yarn":
        return _yarn(config, plain_F, head_dim)
    return plain_F


def attention_factor(config: RopeConfig) -> float:
    """What cos and sin are multiplied with."""
    if config.kind != "yarn":
        return 1.0
    return config.attention_factor or (0.1 * math.log(config.factor) + 1.0 if config.factor > 1.0 else 1.0)


def _llama3(config: RopeConfig, plain_F: Tensor) -> Tensor:
    """Low frequencies divided by the factor, high ones kept, those between blended by their number of turns."""
    turns_F = config.original_max_position * plain_F / (2 * math.pi)
    kept_F = ((turns_F - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)).clamp(0, 1)
    return (1 - kept_F) * plain_F / config.factor + kept_F * plain_F


def _yarn(config: RopeConfig, plain_F: Tensor, head_dim: int) -> Tensor:
    """Frequencies that turn more than beta_fast times kept, fewer than beta_slow divided, a linear ramp between."""

    def dim_of_turns(turns: float) -> float:
        return head_dim * math.log(config.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dim_of_turns(config.beta_fast), dim_of_turns(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    divided_F = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain_F / config.factor * divided_F + plain_F * (1 - divided_F)
