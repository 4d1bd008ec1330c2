"""Medians with their range, percentiles, and bootstrap intervals over prompts."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and what lies around it: minimum and maximum of repeats, or a 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def over_repeats(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Tail:
    """The middle and the end of a distribution."""

    p50: float
    p99: float


def tail(values: Sequence[float], counts: Sequence[int] | None = None) -> Tail | None:
    """Percentiles, between two values on the line that joins them; None of nothing. counts: how often each value counts."""
    found = np.asarray(values, np.float64)
    if counts is not None:
        found = np.repeat(found, counts)
    if not found.size:
        return None
    p50, p99 = np.percentile(found, [50, 99])
    return Tail(float(p50), float(p99))


def ratio_over_prompts(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Spread:
    """sum(numerators) / sum(denominators) with its 95 % percentile bootstrap interval; item i belongs to prompt i.

    Prompts are drawn anew with replacement, so a few easy prompts show as a wide interval. The denominators are positive.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(top), (_DRAWS, len(top)))
    ratios = top[drawn].sum(1) / bottom[drawn].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Spread(float(top.sum() / bottom.sum()), float(low), float(high))
