"""The range of a tensor, and what calibration needs of whatever estimates one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

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
        """Return the interval decided on so far; raises ValueError where nothing was seen."""

    def seen(self) -> Range:
        """Return the smallest and the largest value so far; raises ValueError where there was none."""
