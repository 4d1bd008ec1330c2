"""The arithmetic of the rejection rules, for float64 tensors and, in the proofs, for numpy arrays of exact fractions alike.

All arrays are [M, V] (or [M] where said). p: the target's distribution at a node, what is left of it after rejections.
q: the distribution that the next child was drawn from. x: that child, as 1 at its token and 0 elsewhere.
"""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Numbers = TypeVar("Numbers", Tensor, npt.NDArray[np.object_])


def normalised(weights: Numbers) -> Numbers:
    """Weights over their sum; all zero stays so."""
    total: Any = weights.sum(-1)
    shares: Numbers = weights / (total + (total == 0))[..., None]
    return shares


def drawn_from(q: Numbers, x: Numbers) -> Numbers:
    """q, or x itself where q cannot draw it: a fixed choice is drawn from the distribution that has it alone."""
    possible: Any = (q * x).sum(-1) > 0
    effective: Numbers = q * possible[..., None] + x * (possible == 0)[..., None]
    return effective


def acceptance_probability(p: Numbers, q: Numbers, x: Numbers, weight: Any = 1) -> Numbers:
    """min(1, weight * p(x) / q(x)), [M]. In block verification the path above carries `weight`, and the result is x's own."""
    ratio: Any = weight * (p * x).sum(-1) / (q * x).sum(-1)
    probability: Numbers = ratio.clip(0, 1)
    return probability


def residual(p: Numbers, q: Numbers) -> Numbers:
    """What p has left after a child drawn from q was rejected: max(p - q, 0), normalised.

    No mass is left only where p = q, where nothing is ever rejected, up to rounding; then p itself.
    """
    left: Any = (p - q).clip(0)
    kept: Numbers = left + p * (left.sum(-1) == 0)[..., None]
    return normalised(kept)


def without(q: Numbers, x: Numbers) -> Numbers:
    """q after x was tried and taken out."""
    return normalised(q * (1 - x))


def stopping_probability(weight: Numbers, p: Numbers, q: Numbers) -> Numbers:
    """Block verification: the probability of keeping the path up to a node, given that it is not kept any further, [M].

    S / (S + 1 - weight) with S the sum of max(weight * p - q, 0), and 0 where S is.
    """
    surplus: Any = (weight[..., None] * p - q).clip(0).sum(-1)
    rest = surplus + 1 - weight
    probability: Numbers = surplus / (rest + (rest == 0))
    return probability
