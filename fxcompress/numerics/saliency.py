"""Saliency of channels: how much a model is expected to miss one. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


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
