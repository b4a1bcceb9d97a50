"""How far two arrays are apart, where infinities that both have in one place are no difference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def gap(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """`left - right` in float64, zero where both are the same infinity (masked scores); NaN stays NaN."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, a - b)


def distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The Euclidean norm of the gap."""
    return float(np.linalg.norm(gap(left, right).ravel()))


def finite_distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The norm of the gap where both are finite: what a bound may be made of, being finite itself."""
    both = np.isfinite(left.astype(np.float64)) & np.isfinite(right.astype(np.float64))
    return float(np.linalg.norm(gap(left, right)[both]))


def size(values: NDArray[Any]) -> float:
    """The Euclidean norm of what is finite."""
    exact = values.astype(np.float64)
    return float(np.linalg.norm(exact[np.isfinite(exact)]))


def largest(values: NDArray[Any]) -> float:
    """The largest finite magnitude, 0 where there is none."""
    exact = values.astype(np.float64)
    return float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
