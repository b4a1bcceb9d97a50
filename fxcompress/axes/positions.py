"""Reading positions off an expression: what is kept, what it weighs, how wide it becomes.

`kept` is always a mapping from leaf to the sorted indices that stay; a leaf that is not in it stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fxcompress.axes.expression import Axis, Concat, Dim, find

Indices = NDArray[np.int64]


def width(dim: Dim, widths: Mapping[Axis, int]) -> int:
    """The size of `dim` once every leaf in `widths` has the width given there."""
    dim = find(dim)
    if isinstance(dim, Axis):
        return widths.get(dim, dim.size)
    if isinstance(dim, Concat):
        return sum(width(part, widths) for part in dim.parts)
    result = 1
    for factor in dim.factors:
        result *= width(factor, widths)
    return result


def kept(dim: Dim, indices: Mapping[Axis, Indices]) -> Indices:
    """The positions of `dim` that stay, ascending."""
    dim = find(dim)
    if isinstance(dim, Axis):
        found = indices.get(dim)
        return np.arange(dim.size, dtype=np.int64) if found is None else found
    if isinstance(dim, Concat):
        offsets = np.cumsum([0, *(part.size for part in dim.parts)])
        pieces = [kept(part, indices) + start for part, start in zip(dim.parts, offsets, strict=False)]
        return np.concatenate(pieces)
    result = np.zeros(1, dtype=np.int64)
    for factor in dim.factors:
        result = (result[:, None] * factor.size + kept(factor, indices)[None, :]).reshape(-1)
    return result


def multiplicities(dim: Dim) -> dict[Axis, int]:
    """For each leaf of `dim`, how many of its positions go with one index of the leaf."""
    dim = find(dim)
    if isinstance(dim, Axis):
        return {dim: 1}
    counts: dict[Axis, int] = {}
    for child in dim.parts if isinstance(dim, Concat) else dim.factors:
        times = 1 if isinstance(dim, Concat) else dim.size // child.size
        for axis, count in multiplicities(child).items():
            counts[axis] = counts.get(axis, 0) + times * count
    return counts


def occurrences(dim: Dim, axis: Axis) -> list[Indices]:
    """One label array per occurrence of `axis` in `dim`: for each position the index along `axis`, or -1
    outside.
    """
    dim = find(dim)
    if isinstance(dim, Axis):
        return [np.arange(dim.size, dtype=np.int64)] if dim is axis else []
    children = dim.parts if isinstance(dim, Concat) else dim.factors
    found: list[Indices] = []
    before = 0 if isinstance(dim, Concat) else 1
    for child in children:
        for labels in occurrences(child, axis):
            if isinstance(dim, Concat):
                whole = np.full(dim.size, -1, dtype=np.int64)
                whole[before : before + child.size] = labels
            else:
                after = dim.size // (before * child.size)
                whole = np.tile(np.repeat(labels, after), before)
            found.append(whole)
        before = before + child.size if isinstance(dim, Concat) else before * child.size
    return found
