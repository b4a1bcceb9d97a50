"""Statistics for measurements: intervals on ratios of medians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its bootstrap interval: `low <= value <= high` in all but freak samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """Percentile-bootstrap interval on `median(numerator) / median(denominator)`.

    The two samples, each of shape [rounds], are *paired*: element i of both was measured in round i. Whole
    rounds are resampled, so that drift which hits both sides of a round (a slow neighbour, a clock change)
    cancels in the ratio and does not widen the interval. (Efron and Tibshirani, An Introduction to the
    Bootstrap, sections 8 and 13.)

    Raises:
        ValueError: the samples are empty, of different lengths, or not positive.
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if above.ndim != 1 or above.shape != below.shape or above.size == 0:
        raise ValueError(f"paired samples of one length expected, got {above.shape} and {below.shape}")
    if not (np.all(above > 0) and np.all(below > 0)):
        raise ValueError("the samples of a ratio must be positive")
    rounds = np.random.default_rng(seed).integers(0, above.size, (resamples, above.size))
    ratios = np.median(above[rounds], axis=1) / np.median(below[rounds], axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    return Ratio(float(np.median(above) / np.median(below)), float(low), float(high))
