"""Streaming range estimators: they see a tensor a batch at a time and keep a few numbers.

An estimator is updated with :meth:`~MinMax.update` and read with :meth:`~MinMax.range`. Its memory does not
depend on how many samples it has seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """The interval that a tensor's values were seen to lie in."""

    low: float
    high: float

    @property
    def finite(self) -> bool:
        """False when a NaN or an infinity was among the values."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"


class Estimator(Protocol):
    """What calibration needs of an estimator."""

    def update(self, values: Tensor) -> None:
        """Take in one batch."""

    def range(self) -> Range:
        """Return the interval decided on so far."""


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

    def range(self) -> Range:
        """Return the interval seen.

        Raises:
            ValueError: nothing was seen yet.
        """
        if self._low > self._high:
            raise ValueError("no values were seen")
        return Range(self._low, self._high)
