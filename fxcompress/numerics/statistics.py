"""Statistics for measurements: intervals on ratios of medians, and how far one array is from another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


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


def signal_to_noise(reference: ArrayLike, other: ArrayLike) -> float:
    """Signal-to-noise ratio in dB, `10 log10(|reference|^2 / |reference - other|^2)`: higher is closer.

    Equal arrays give `inf`; a silent reference with a noisy `other` gives `-inf`.
    """
    clean = np.asarray(reference, np.float64)
    noise = _power(clean - np.asarray(other, np.float64))
    signal = _power(clean)
    if noise == 0.0:
        return float("inf")
    return float(10.0 * np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def relative_error(reference: ArrayLike, other: ArrayLike) -> float:
    """`|other - reference|_2 / |reference|_2`, in float64; 0 for two zero arrays, `inf` for noise on a zero
    one.
    """
    clean = np.asarray(reference, np.float64)
    noise, signal = _power(np.asarray(other, np.float64) - clean), _power(clean)
    if noise == 0.0:
        return 0.0
    return float(np.sqrt(noise / signal)) if signal > 0.0 else float("inf")


def _power(values: NDArray[np.float64]) -> float:
    """Sum of squares; a NaN anywhere stays a NaN."""
    return float(np.sum(np.square(values)))
