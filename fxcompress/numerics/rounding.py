"""Rounding weights up or down so that outputs, not weights, come closest.

Nagel et al., "Up or down? Adaptive rounding for post-training quantization" (2020), show that which of its
two neighbours a weight is rounded to is a quadratic binary problem in the Gram matrix of the layer's inputs.
They relax it and run gradient descent with an annealed penalty. Here the binary problem itself is descended:
for every output, again and again, the one weight is moved to its other neighbour that lowers the squared
error most, until none does. Each step costs one column of the Gram matrix, there is nothing to tune, and the
error never rises.

Inputs are those that the *quantized* layers before it hand over, and the target is the float layer's output:
rounding also makes up for what was lost before. (Nagel et al. call it asymmetric reconstruction.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.numerics.least_squares import Moments

STEPS = 2000
"""The most that are made for one layer, of all its outputs at once."""

WORK = 2e10
"""The most multiply-adds that are spent on one layer: wide ones make fewer steps."""


@dataclass(frozen=True)
class Budget:
    """How long one layer may be descended; `seconds` bounds what `steps` and `work` leave open."""

    steps: int = STEPS
    work: float = WORK
    seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic


def other_neighbours(exact: Tensor, whole: Tensor, limit: int) -> Tensor:
    """For each weight in units of its scale the way to the integer on its other side: 1, -1, 0 for none."""
    toward = torch.sign(exact - whole)
    return torch.where((whole + toward).abs() <= limit, toward, 0.0)


def descend(moments: Moments, moves: Tensor, *, intercept: bool, budget: Budget | None = None) -> Tensor:
    """Find which weights to move, for the least `sum |r - x D - b|^2`, `D` being the sum of the moves made.

    Args:
        moments: of inputs `x` and of what outputs lack, `r`.
        moves: `[groups, inputs, outputs]`, by how much each weight would change, 0 where it must not.
        intercept: whether a bias is fitted beside it, so that means do not count.
        budget: where to stop before nothing gets better.

    Returns:
        `D`, `[groups, inputs, outputs]`, in float64.
    """
    budget = budget or Budget()
    gram, cross = moments.xx, moments.xr
    if intercept and moments.count:
        gram = gram - moments.x[:, :, None] * moments.x[:, None] / moments.count
        cross = cross - moments.x[:, :, None] * moments.r[:, None] / moments.count
    open_moves, made = moves.double().clone(), torch.zeros_like(cross)
    slope = -cross
    curvature = gram.diagonal(dim1=1, dim2=2)[:, :, None]
    steps = min(budget.steps, max(int(budget.work / max(moves.numel(), 1)), 1))
    end = budget.clock() + budget.seconds
    for _ in range(steps):
        gains = open_moves * (open_moves * curvature + 2.0 * slope)
        gain, place = gains.min(dim=1, keepdim=True)
        better = gain < 0.0
        if not bool(better.any()) or budget.clock() > end:
            break
        move = torch.where(better, open_moves.gather(1, place), 0.0)
        made.scatter_add_(1, place, move)
        open_moves.scatter_(1, place, torch.where(better, -move, open_moves.gather(1, place)))
        slope = slope + _columns(gram, place) * move
    return made


def _columns(gram: Tensor, place: Tensor) -> Tensor:
    """`[groups, inputs, outputs]`: for every output the column of the input that moves."""
    groups, inputs, _ = gram.shape
    return gram.gather(2, place.expand(groups, inputs, place.shape[2]))
