"""The arithmetic of the rejection rules, for float64 tensors and, in the proofs, for numpy arrays of exact fractions alike.

p: the target's distribution at a node, what is left of it after rejections. q: the distribution that the next child was drawn from.
"""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Numbers = TypeVar("Numbers", Tensor, npt.NDArray[np.object_])


def normalised(weights: Numbers) -> Numbers:
    """Weights over their sum along the last axis; all zero stays so."""
    total: Any = weights.sum(-1)
    return weights / (total + (total == 0))[..., None]


def residual(p: Numbers, q: Numbers) -> Numbers:
    """What p has left after a child drawn from q was rejected: max(p - q, 0), normalised.

    No mass is left only where p = q, where nothing is ever rejected, up to rounding; then p itself.
    """
    left: Any = (p - q).clip(0)
    return normalised(left + p * (left.sum(-1) == 0)[..., None])


def acceptance_probability(p_of_child: Numbers, q_of_child: Numbers) -> Numbers:
    """min(1, p / q) of a child drawn from q. A child that q cannot have drawn is a fixed choice badly labelled: 0."""
    ratio: Any = p_of_child / (q_of_child + (q_of_child == 0))
    return ratio.clip(0, 1) * (q_of_child > 0)


def without(distribution: Numbers, is_child: Numbers) -> Numbers:
    """The distribution with one token taken out. `is_child`: 1 at that token, 0 elsewhere."""
    return normalised(distribution * (1 - is_child))


def carried(before: Numbers, p_of_child: Numbers, q_of_child: Numbers) -> Numbers:
    """Block verification's weight of a path after one more token: min(1, before * p / q)."""
    ratio: Any = before * p_of_child / (q_of_child + (q_of_child == 0))
    return ratio.clip(0, 1) * (q_of_child > 0)


def stopping_probability(weight: Numbers, p: Numbers, q: Numbers) -> Numbers:
    """Block verification's probability of keeping a path up to a node and not beyond: S / (S + 1 - weight), S the sum of
    max(weight * p - q, 0); 0 where S is."""
    surplus: Any = (weight[..., None] * p - q).clip(0).sum(-1)
    rest = surplus + 1 - weight
    return surplus / (rest + (rest == 0))
