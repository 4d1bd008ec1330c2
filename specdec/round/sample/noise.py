"""Streams of keyed noise. The generator, a pure function of (seed, position, token), is `specdec.kernels.gumbel.reference`."""

from enum import IntEnum

from torch import Tensor

from specdec.kernels.gumbel.reference import uniform as _uniform


class Domain(IntEnum):
    """Streams that never share a number."""

    TARGET = 0  # the target's own tokens; drafters that guess them read it too
    ACCEPT = 1  # uniform draws of the rejection rules
    DRAFT = 2  # drafters that sample, for the rejection rules; see `in_round`
    RESIDUAL = 3  # the token that a rejection rule draws itself


def in_round(positions_N: Tensor, roots_N: Tensor) -> Tensor:
    """Positions as `Domain.DRAFT` wants them: noise for a position in the round whose root lies at another, and in no other
    round. A round that looked at a draft and dropped it has learned something of its noise.
    """
    return positions_N | roots_N << 32


def uniform(seeds_N: Tensor, positions_N: Tensor, draws_NC: Tensor, domain: Domain = Domain.ACCEPT) -> Tensor:
    """Uniform draws, float64 [N, C], strictly between 0 and 1; `draws_NC` (int64) numbers the draws at one position."""
    return _uniform(seeds_N, positions_N, draws_NC, domain)
