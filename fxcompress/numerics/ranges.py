"""Streaming range estimators: they see a tensor a batch at a time and keep a few numbers.

An estimator is updated with ``update`` and read with ``range``. Its memory does not depend on how many
samples it has seen: two numbers, or the `histogram.BINS` counts of a histogram whose bins widen as the range
grows. :data:`ESTIMATORS` has them by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fxcompress.numerics.clipping import entropy_range, mse_range, percentile_range
from fxcompress.numerics.histogram import Histogram
from fxcompress.numerics.interval import Estimator, Range

__all__ = ["ESTIMATORS", "Distribution", "Estimator", "MinMax", "MovingAverage", "Range"]

PACE = 0.1
"""What a new batch weighs in a moving average."""


class MinMax:
    """The smallest and the largest value ever seen. A NaN once seen stays."""

    def __init__(self) -> None:
        self._low = math.inf
        self._high = -math.inf

    def update(self, values: Tensor) -> None:
        """Take in one batch; an empty tensor changes nothing."""
        if values.numel() == 0:
            return
        low, high = (float(bound) for bound in torch.aminmax(values.detach()))
        # min(x, nan) is x when nan comes second: ask for it, so that one bad batch is never forgotten.
        self._low = low if math.isnan(low) else min(self._low, low)
        self._high = high if math.isnan(high) else max(self._high, high)

    def seen(self) -> Range:
        """Return the smallest and the largest value.

        Raises:
            ValueError: nothing was seen yet.
        """
        if self._low > self._high:
            raise ValueError("no values were seen")
        return Range(self._low, self._high)

    def range(self) -> Range:
        """Return the interval seen; raises ValueError where there is none yet."""
        return self.seen()


class MovingAverage(MinMax):
    """Averages of the batches' smallest and largest values, late ones weighing more (Jacob et al. 2018).

    The weights of all batches add up to one from the first batch on, so that a short calibration is not
    ruled by its first batch.
    """

    def __init__(self, pace: float = PACE) -> None:
        super().__init__()
        self._pace = pace
        self._sums = 0.0, 0.0
        self._weight = 0.0

    def update(self, values: Tensor) -> None:
        """Take in one batch; an empty tensor changes nothing."""
        super().update(values)
        if values.numel() == 0:
            return
        low, high = (float(bound) for bound in torch.aminmax(values.detach()))
        stay = 1.0 - self._pace
        self._sums = self._sums[0] * stay + low * self._pace, self._sums[1] * stay + high * self._pace
        self._weight = self._weight * stay + self._pace

    def range(self) -> Range:
        """Return the averages; raises ValueError where nothing was seen yet."""
        self.seen()
        return Range(self._sums[0] / self._weight, self._sums[1] / self._weight)


class Distribution(MinMax):
    """A histogram of everything seen, and a rule that reads a range off it."""

    def __init__(self, rule: Callable[[Histogram], Range]) -> None:
        super().__init__()
        self._rule = rule
        self._histogram = Histogram()
        self._decided: Range | None = None

    def update(self, values: Tensor) -> None:
        """Take in one batch; numbers that are not finite show in the range at once."""
        super().update(values)
        self._decided = None
        if values.numel() and self.seen().finite:
            self._histogram.update(values.detach())

    def range(self) -> Range:
        """Return what the rule decides; raises ValueError where nothing was seen yet."""
        seen = self.seen()
        if not seen.finite or seen.low == seen.high:
            return seen
        if self._decided is None:
            found = self._rule(self._histogram)
            self._decided = Range(max(found.low, seen.low), min(found.high, seen.high))
        return self._decided


def _percentile() -> Estimator:
    return Distribution(percentile_range)


def _mse() -> Estimator:
    return Distribution(mse_range)


def _entropy() -> Estimator:
    return Distribution(entropy_range)


ESTIMATORS: Mapping[str, Callable[[], Estimator]] = MappingProxyType(
    {
        "minmax": MinMax,
        "average": MovingAverage,
        "percentile": _percentile,
        "mse": _mse,
        "entropy": _entropy,
    }
)
