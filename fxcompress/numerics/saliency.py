"""Saliency of channels: how much a model is expected to miss one. Pure functions on arrays.

A saliency is built in three steps. A *kind* gives every position of every member of a group a number, never
negative; a *reduction* makes one number of the positions that belong to one index; a *normalization* makes
groups of different scale comparable. What has a data kind's number is named in `DATA_KINDS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxcompress.errors import InputError

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]
Slices = Iterable[tuple[Labels, Scores]]
"""Labels (per position the index it belongs to, or -1) and the number of every position."""

STORED_KINDS = {
    "l1": "sum of |w| (Li et al. 2017, Pruning Filters for Efficient ConvNets)",
    "l2": "root of the sum of w^2, over all coupled layers (Fang et al. 2023, DepGraph)",
    "batch_norm": "|gamma| of the batch norms (Liu et al. 2017, Network Slimming); L2 where there are none",
    "geometric_median": "distance to all other indices (He et al. 2019, Filter Pruning via Geometric Median)",
    "random": "a draw (the baseline of Blalock et al. 2020, What is the State of Neural Network Pruning?)",
}
DATA_KINDS = {
    "taylor": "mean |dL/dm| of a gate m at the consumers, which is |sum of g*w| over their slices (Molchanov "
    "et al. 2019, Importance Estimation for Neural Network Pruning)",
    "fisher": "mean (dL/dm)^2 of the same gate (Theis et al. 2018, Faster gaze prediction with dense "
    "networks and Fisher pruning)",
    "obd": "sum of g^2 w^2, the diagonal second order (LeCun et al. 1990, Optimal Brain Damage, with the "
    "empirical Fisher information for the Hessian's diagonal)",
    "activation": "mean |x| of what the consumers read (Molchanov et al. 2017, Pruning Convolutional Neural "
    "Networks for Resource Efficient Inference)",
    "variance": "variance of what the consumers read (Polyak and Wolf 2015, Channel-Level Acceleration)",
    "apoz": "share of what the consumers read that is not zero (Hu et al. 2016, Network Trimming)",
    "reconstruction": "energy that the consumers lose, mean x^2 times ||slice||^2 (Luo et al. 2017, ThiNet; "
    "per weight it is Sun et al. 2024, Wanda)",
    "elimination": "error that remains after the consumers are re-fitted, greedily one index at a time "
    "(Hassibi and Stork 1993, Optimal Brain Surgeon; Kurtic et al. 2023, ZipLM)",
}
KINDS = (*STORED_KINDS, *DATA_KINDS)
REDUCTIONS = ("sum", "mean", "max", "product")
NORMALIZATIONS = ("mean", "max", "sum", "standard", "none", "lamp", "macs")


@dataclass(frozen=True)
class Saliency:
    """How indices are ranked.

    Args:
        kind: what is measured at each position; `STORED_KINDS` and `DATA_KINDS` say what each means.
        reduce: how the positions of one index, over all members of its group, become one number. The
            `"product"` is a geometric mean. L2 reduces squares and takes the root afterwards.
        normalize: what every score of a group is divided by: the group's `"mean"`, `"max"` or `"sum"`;
            `"standard"` counts deviations from the mean, `"lamp"` is `lamp`, `"none"` nothing; `"macs"` is
            the share of the MACs that an index saves, for kinds that mean the same in every group, such as
            `"taylor"` or `"elimination"` (Liu et al. 2021, Group Fisher Pruning).
        seed: for `"random"`.
    """

    kind: str = "l2"
    reduce: str = "sum"
    normalize: str = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("saliency", self.kind, KINDS),
            ("reduce", self.reduce, REDUCTIONS),
            ("normalize", self.normalize, NORMALIZATIONS),
        ):
            if value not in choices:
                raise InputError(
                    f"{name}={value!r} is not one of {', '.join(choices)}",
                    hint='`Saliency("l2", reduce="mean", normalize="max")` spells all three',
                )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"seed={self.seed!r} is not a whole number from 0", hint="leave it out for 0")


NAMED = {kind: Saliency(kind) for kind in KINDS} | {
    "taylor": Saliency("taylor", normalize="macs"),
    "fisher": Saliency("fisher", normalize="macs"),
    "lamp": Saliency("l2", normalize="lamp"),
}
"""What a name alone stands for. Changes of the loss are compared as such, per MAC."""


def as_saliency(value: str | Saliency) -> Saliency:
    """The saliency of a name; raises InputError for what is neither."""
    if isinstance(value, Saliency):
        return value
    if isinstance(value, str) and value in NAMED:
        return NAMED[value]
    raise InputError(f"saliency={value!r} is not one of {', '.join(NAMED)}", hint="or pass Saliency(...)")


def absolute_sums(tensor: NDArray[np.floating], dim: int) -> Scores:
    """The sum of absolute values of each slice along `dim`; shape `[tensor.shape[dim]]`."""
    found: Scores = np.abs(_slices(tensor, dim)).sum(1, dtype=np.float64)
    return found


def squared_sums(tensor: NDArray[np.floating], dim: int) -> Scores:
    """The sum of squares of each slice along `dim`; shape `[tensor.shape[dim]]`."""
    moved = _slices(tensor, dim)
    found: Scores = np.einsum("ij,ij->i", moved, moved, dtype=np.float64)
    return found


def _slices(tensor: NDArray[np.floating], dim: int) -> NDArray[np.floating]:
    return np.moveaxis(tensor, dim, 0).reshape(tensor.shape[dim], -1)


def pooled(size: int, slices: Slices, reduce: str = "sum") -> Scores:
    """One number per index from the numbers of all its positions.

    Args:
        size: the number of indices.
        slices: labels and numbers, which are not negative.
        reduce: `"sum"`, `"mean"`, `"max"` or `"product"` (the geometric mean; 0 where a factor is 0).
    """
    total, count = np.zeros(size), np.zeros(size)
    for labels, values in slices:
        inside = labels >= 0
        if reduce == "max":
            np.maximum.at(total, labels[inside], values[inside])
            continue
        with np.errstate(divide="ignore"):
            added = np.log(values[inside]) if reduce == "product" else values[inside]
        np.add.at(total, labels[inside], added)
        np.add.at(count, labels[inside], 1.0)
    if reduce in ("sum", "max"):
        return total
    mean = total / np.maximum(count, 1.0)
    return np.exp(mean) if reduce == "product" else mean


def squared_distances(rows: Scores) -> Scores:
    """Squared Euclidean distances between all pairs of rows; `[n, f]` to `[n, n]`."""
    squares = np.einsum("ij,ij->i", rows, rows)
    found: Scores = np.maximum(squares[:, None] + squares[None, :] - 2 * rows @ rows.T, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def normalized(scores: Scores, how: str) -> Scores:
    """The scores of one group on a scale that other groups share; see `Saliency.normalize`.

    A group of zeros has no order: every index gets the group's average on that scale.
    """
    if how in ("none", "macs"):  # prices are not the group's own: `analysis.saliency` divides by them
        return scores
    if how == "lamp":
        return lamp(scores)
    if how == "standard":
        deviation = float(scores.std())
        return (scores - scores.mean()) / deviation if deviation > 0 else np.zeros_like(scores)
    scale = float(scores.max() if how == "max" else scores.mean() if how == "mean" else scores.sum())
    return scores / scale if scale > 0 else np.full_like(scores, 1 / len(scores) if how == "sum" else 1.0)


def lamp(scores: Scores) -> Scores:
    """Each squared score relative to the sum of those that are not smaller (Lee et al. 2021, Layer-Adaptive
    Sparsity for the Magnitude-based Pruning): the largest of every group is 1.
    """
    order = np.argsort(scores, kind="stable")
    squares = scores[order] ** 2
    rest = np.cumsum(squares[::-1])[::-1]
    found = np.ones_like(scores)
    found[order] = np.divide(squares, rest, out=np.ones_like(squares), where=rest > 0)
    return found
