"""Regularised least squares from streamed moments; float64 throughout.

A layer is corrected by the `W`, `b` that minimise `sum |r - x W - b|^2 + damping * |W|^2`, where `x` is its
input and `r` what its output lacks. Only moments of `x` and `r` are kept, so that memory does not depend on
the number of rows. The penalty is on the *change* of the weights: with few rows the layer stays as it is.

Re-fitting the consumers of removed channels is He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks" (2017), and Luo et al., "ThiNet" (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sums over rows of regressors `x` `[groups, rows, inputs]` and residuals `r` `[groups, rows, outputs]`.

    Each group has its own equations, as a grouped convolution has.
    """

    count: int
    x: Tensor
    r: Tensor
    xx: Tensor
    xr: Tensor
    rr: Tensor

    @classmethod
    def empty(cls, groups: int, inputs: int, outputs: int) -> Moments:
        """Sums over no rows."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64)

        return cls(
            0, zeros(inputs), zeros(outputs), zeros(inputs, inputs), zeros(inputs, outputs), zeros(outputs)
        )

    def update(self, x: Tensor, r: Tensor) -> None:
        """Add rows; products are formed in the rows' precision (float32 at least) and summed in float64."""
        if x.dtype.itemsize < torch.float32.itemsize:
            x, r = x.float(), r.float()
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.r += r.sum(1)
        self.xx += x.mT @ x
        self.xr += x.mT @ r
        self.rr += r.square().sum(1)

    @property
    def finite(self) -> bool:
        """Whether no row held a NaN or an infinity."""
        return bool(self.xx.isfinite().all()) and bool(self.rr.isfinite().all())

    def errors(self, fit: Fit) -> Tensor:
        """The sum of squares that a fit leaves, `[groups, outputs]`, by the moments alone."""
        w, b = fit.weight, fit.bias
        squares = self.rr + (w * (self.xx @ w)).sum(1) - 2.0 * (w * self.xr).sum(1)
        shifts = self.count * b.square() - 2.0 * b * self.r + 2.0 * b * (self.x[:, None] @ w)[:, 0]
        return (squares + shifts).clamp_min(0.0)


@dataclass(frozen=True)
class Fit:
    """A correction: `weight` `[groups, inputs, outputs]`, `bias` `[groups, outputs]`."""

    weight: Tensor
    bias: Tensor


def ridge(moments: Moments, damping: float, *, intercept: bool = True) -> Fit:
    """Solve the damped normal equations by Cholesky.

    Args:
        moments: of the rows to fit.
        damping: relative to the mean of the Gram matrix's diagonal; infinite fits the bias alone.
        intercept: whether a bias may be fitted; else it is zero.
    """
    count = max(moments.count, 1)
    xx, xr = moments.xx, moments.xr
    if intercept:
        xx = xx - moments.x[:, :, None] * moments.x[:, None] / count
        xr = xr - moments.x[:, :, None] * moments.r[:, None] / count
    weight = torch.zeros_like(xr) if damping == float("inf") else _solve(xx, xr, damping)
    return Fit(weight, best_intercept(moments, weight) if intercept else torch.zeros_like(moments.r))


def best_intercept(moments: Moments, weight: Tensor) -> Tensor:
    """The bias that is best beside a weight: the mean of what it leaves."""
    return (moments.r - (moments.x[:, None] @ weight)[:, 0]) / max(moments.count, 1)


def best_fit(
    fitted: Moments,
    judged: Moments,
    dampings: Sequence[float],
    *,
    intercept: bool = True,
    free: Tensor | None = None,
) -> Fit:
    """For every output the fit whose damping does best on the rows that judge; zero where none is better.

    Args:
        fitted, judged: moments of the rows that are fitted, and of those that judge.
        dampings: what is tried.
        intercept: whether a bias may be fitted.
        free: `[groups, inputs, outputs]`, the weights that may change. Others are left out of a fit after it
            was made, and its bias is then the best one without them.
    """
    weight, bias = torch.zeros_like(fitted.xr), torch.zeros_like(fitted.r)
    least = judged.rr
    for damping in dampings:
        fit = ridge(fitted, damping, intercept=intercept)
        if free is not None:
            part = torch.where(free, fit.weight, 0.0)
            fit = Fit(part, best_intercept(fitted, part) if intercept else fit.bias)
        errors = judged.errors(fit)
        better = errors < least
        least = torch.where(better, errors, least)
        weight = torch.where(better[:, None], fit.weight, weight)
        bias = torch.where(better, fit.bias, bias)
    return Fit(weight, bias)


def _solve(gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """`(gram + damping * mean(diag) * I)^-1 cross`; constant inputs get no weight."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(1).clamp_min(torch.finfo(torch.float64).tiny)
    while True:
        damped = gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_((damping * scale)[:, None])
        factor, info = torch.linalg.cholesky_ex(damped)
        if not bool(info.any()):
            return torch.cholesky_solve(cross, factor)
        damping = max(damping * 10.0, 1e-12)  # rounding made the matrix indefinite
