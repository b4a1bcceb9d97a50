"""What the steps between two precisions and two layouts cost, by the size of the tensor.

These kernels only read and write, so their time depends on the number of elements alone: it is measured at a
few sizes and interpolated between them on logarithmic scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fxcompress.runtime.kernel_models import Kernel
from fxcompress.runtime.kernel_times import KernelTimes

SIZES = (1 << 8, 1 << 12, 1 << 15, 1 << 18, 1 << 21)
"""Elements at which conversions are measured."""
_CHANNELS = 32
STEPS = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Transpose")
"""The conversions; `Transpose` is of integers, between channels second and channels last."""


@dataclass
class ConversionTimes:
    """Milliseconds of conversions on this machine, measured where they are asked for."""

    times: KernelTimes
    _known: dict[tuple[str, int], float] = field(default_factory=dict)

    def ms(self, step: str, elements: int) -> float:
        """Milliseconds of a step on a tensor of that many elements."""
        size = min(max(elements, SIZES[0]), SIZES[-1])
        above = next(place for place, knot in enumerate(SIZES) if knot >= size)
        if SIZES[above] == size:
            return self._at(step, SIZES[above]) * max(1.0, elements / SIZES[-1])
        low, high = SIZES[above - 1], SIZES[above]
        share = math.log(size / low) / math.log(high / low)
        a, b = self._at(step, low), self._at(step, high)
        return math.exp((1 - share) * math.log(a) + share * math.log(b))

    def _at(self, step: str, size: int) -> float:
        if (step, size) not in self._known:
            self._known[step, size] = self.times.ms(conversion(step, size)) or _guess(size)
        return self._known[step, size]


def conversion(step: str, size: int) -> Kernel:
    """The kernel that a step is measured with, on an image of `size` elements."""
    shape = (1, _CHANNELS, size // _CHANNELS, 1)
    if step == "Transpose":
        return Kernel(step, (shape,), (), (("perm", (0, 2, 3, 1)),), "int8")
    return Kernel(step, (shape,))


def _guess(size: int) -> float:
    """Where the time for measuring is spent: five elements a nanosecond, and a call."""
    return 1e-3 + size / 5e6
