"""Roundings that may fall either way: an integer is one step off where its value lies on the border of two.

A runtime sums in another order, or rounds a bias to the integers of its accumulator; where the exact value
is a hair from the border, the integer becomes the other one. That it *is* a hair from the border can be seen,
which tells a tie from an operator that is wrong by less than a step.

Measured on the twelve networks of `benchmarks.quantization`, with all, half and a tenth of their operators in
INT8: values that a session rounded the other way lay at most 7e-4 of a step past the border (ResNet-50 with
random weights and long stretches in float), mostly 2e-5; 7e-3 where a float bias is rounded. A weight's scale
that is 0.4 % off is 0.3 of a step away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fxcompress.proof.distance import largest

TIE = 1.0 / 16.0
"""How far past the border, in steps, a value of eight bits may be rounded the other way."""
TAIL = 1024.0 * float(np.finfo(np.float32).eps)
"""Relative rounding of a short float32 chain: a hundred eps for a long sum, times the ten operators of a
chain.
"""


@dataclass(frozen=True)
class Flips:
    """The integers of one quantization that differ from the session's.

    Attributes:
        of: how many there are.
        count: how many differ.
        steps: how far apart the furthest are.
        past: how far past the border between its integer and the next a value lies that the session rounded
            the other way, in steps; the furthest one; 0 where none differs.
        explained: how far rounding explains: `TIE`, or what float32 resolves where the steps are finer.
    """

    of: int
    count: int
    steps: int
    past: float
    explained: float

    @property
    def ties(self) -> bool:
        """Whether rounding explains them all."""
        return self.count == 0 or (self.steps <= 1 and self.past <= self.explained)

    def said(self, name: str) -> str:
        """What is wrong with the quantization `name`, where these are more than ties."""
        share = f"{self.count / self.of:.1%} of its elements differ"
        if self.steps > 1:
            return f"{name} is up to {self.steps} steps away from the session, given equal inputs ({share})"
        return (
            f"{name} is one step away from the session, given equal inputs, and no tie explains it: a value "
            f"{self.past:.2g} steps past the border is rounded the other way ({share})"
        )


def flips(value: Tensor, mine: Tensor, theirs: Tensor, scheme: Sequence[float]) -> Flips:
    """Compare the integers that a program and a session make of one float tensor.

    Args:
        value: what the program quantizes.
        mine: the program's integers, of the same shape.
        theirs: the session's.
        scheme: size of a step, zero point, the smallest and the largest integer.
    """
    scale, zero, low, high = scheme
    apart = (mine.int() - theirs.int()).abs()
    differ = apart > 0
    if not bool(differ.any()):
        return Flips(mine.numel(), 0, 0, 0.0, TIE)
    exact = (value[differ].double() / scale + zero).clamp(low, high)
    past = float((exact - theirs[differ].double()).abs().max()) - 0.5
    explained = max(TIE, TAIL * largest(value.numpy()) / scale)
    return Flips(mine.numel(), int(differ.sum()), int(apart.max()), past, explained)
