"""Saliency of channels: how much a model is expected to miss one. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxcompress.errors import InputError

Scores = NDArray[np.float64]

KINDS = (
    "l1",
    "l2",
    "batch_norm",
    "taylor",
    "fisher",
    "activation",
    "reconstruction",
    "geometric_median",
    "random",
)
REDUCTIONS = ("sum", "mean", "max", "product")
NORMALIZATIONS = ("mean", "max", "sum", "standard", "none", "lamp")


@dataclass(frozen=True)
class Saliency:
    """How indices are ranked.

    Args:
        kind: what is measured at each position.
        reduce: how the positions of one index, over all members of its group, become one number.
        normalize: how groups of different scale become comparable.
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
                raise InputError(f"{name}={value!r} is not one of {', '.join(choices)}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"seed={self.seed!r} is not a whole number from 0")


NAMED = {kind: Saliency(kind) for kind in KINDS} | {"lamp": Saliency("l2", normalize="lamp")}
"""What a name alone stands for."""


def as_saliency(value: str | Saliency) -> Saliency:
    """The saliency of a name; raises InputError for what is neither."""
    if isinstance(value, Saliency):
        return value
    if isinstance(value, str) and value in NAMED:
        return NAMED[value]
    raise InputError(f"saliency={value!r} is not one of {', '.join(NAMED)}", hint="or pass Saliency(...)")


def squared_sums(tensor: NDArray[np.floating], dim: int) -> Scores:
    """The sum of squares of each slice along `dim`; shape `[tensor.shape[dim]]`."""
    moved = np.moveaxis(tensor, dim, 0).reshape(tensor.shape[dim], -1)
    return np.einsum("ij,ij->i", moved, moved, dtype=np.float64)


def pooled_l2(size: int, slices: Iterable[tuple[NDArray[np.int64], Scores]]) -> Scores:
    """The L2 norm of all weights that go with each index.

    Magnitude as a measure of what a filter is worth is Li et al., "Pruning Filters for Efficient ConvNets"
    (2017); pooling it over coupled layers is Fang et al., "DepGraph" (2023).

    Args:
        size: the number of indices.
        slices: pairs of labels (per position the index it belongs to, or -1) and squared sums per position.
    """
    total = np.zeros(size)
    for labels, squares in slices:
        inside = labels >= 0
        np.add.at(total, labels[inside], squares[inside])
    return np.sqrt(total)


def relative(scores: Scores) -> Scores:
    """Scores divided by their mean, so that groups of different scale can be ranked together."""
    mean = float(scores.mean())
    return scores / mean if mean > 0 else np.ones_like(scores)
