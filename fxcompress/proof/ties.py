"""Roundings that may fall either way: an integer is one step off where its value lies on the border of two.

A runtime sums in another order, or rounds a bias to the integers of its accumulator; where the exact value
is a hair from the border, the integer becomes the other one. That it *is* a hair from the border can be seen,
which tells a tie from an operator that is wrong by less than a step.

Measured on the twelve networks of `benchmarks.quantization`, with all, half and a tenth of their operators in
INT8: values that a session rounded the other way lay at most 7e-4 of a step past the border (ResNet-50 with
random weights and long stretches in float), mostly 2e-5; integer kernels that round a float bias 7e-3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WRITTEN = 1.0 / 512.0
"""How far past the border, in steps, a session that computes in float32 may round a value the other way."""
KERNEL = 1.0 / 16.0
"""The same for integer kernels, which round the bias too."""
RESOLUTION = 16.0 * torch.finfo(torch.float32).eps
"""What float32 resolves of a value, with room for the operators that made it: more than a hair of a step
where there are 65,536 of them.
"""


@dataclass(frozen=True)
class Flips:
    """The integers of one quantization that differ from the session's.

    Attributes:
        of: how many there are.
        count: how many differ.
        steps: how far apart the furthest are.
        past: how far past the border between its integer and the next a value lies that the session rounded
            the other way, in steps, beyond what float32 resolves there; the furthest one.
    """

    of: int
    count: int
    steps: int
    past: float

    def ties(self, room: float) -> bool:
        """Whether all of them are ties, `room` steps past the border included."""
        return self.count == 0 or (self.steps <= 1 and self.past <= room)

    def said(self, name: str, room: float) -> str:
        """What is wrong with the quantization `name`, where these are more than ties."""
        share = f"{self.count / self.of:.1%} of its elements differ"
        if self.steps > 1:
            return f"{name} is up to {self.steps} steps away from the session, given equal inputs ({share})"
        return (
            f"{name} is one step away from the session, given equal inputs, and no tie explains it: a value "
            f"{self.past:.2g} steps past the border is rounded the other way, where float32 explains "
            f"{room:.2g} ({share})"
        )


def flips(value: Tensor, mine: Tensor, theirs: Tensor, scale: float, zero: float) -> Flips:
    """Compare the integers that a program and a session make of one float tensor.

    Args:
        value: what the program quantizes, in float32 or, where its own rounding is to count for nothing, in
            float64.
        mine: the program's integers, of the same shape.
        theirs: the session's.
        scale: size of a step.
        zero: zero point.
    """
    apart = (mine.int() - theirs.int()).abs()
    differ = apart > 0
    if not bool(differ.any()):
        return Flips(mine.numel(), 0, 0, 0.0)
    exact = value[differ].double() / scale
    past = (exact + zero - theirs[differ].double()).abs() - 0.5 - RESOLUTION * exact.abs()
    return Flips(mine.numel(), int(differ.sum()), int(apart.max()), float(past.max()))


def rounding(value: Tensor, exact: Tensor, scale: float, zero: float, low: int, high: int) -> float:
    """How far float32 is from float64, in steps, where the integers do not saturate.

    Args:
        value: a tensor that is quantized, in float32.
        exact: the same in float64.
        scale: size of a step.
        zero: zero point.
        low: the smallest integer.
        high: the largest integer.
    """
    steps = exact / scale + zero
    inside = (steps > low - 1) & (steps < high + 1)
    return float((value[inside].double() - exact[inside]).abs().max()) / scale if bool(inside.any()) else 0.0
