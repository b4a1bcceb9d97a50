"""The slow, obvious twin of the algebra: every tensor is an array of position ids.

A leaf of n positions is n ids. Concatenation and product of dimensions lay these out, so what stays of a
dimension can be found by looking: the positions all of whose ids stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product as every

import numpy as np

from fxcompress.axes.expression import Axis, Concat, Dim, find

Ids = frozenset[tuple[int, int]]
"""The (leaf, index) pairs that one position is made of."""


def positions(dim: Dim) -> list[Ids]:
    """What each position of a dimension is made of, in order."""
    dim = find(dim)
    if isinstance(dim, Axis):
        return [frozenset({(id(dim), index)}) for index in range(dim.size)]
    if isinstance(dim, Concat):
        return [ids for part in dim.parts for ids in positions(part)]
    return [frozenset().union(*choice) for choice in every(*map(positions, dim.factors))]


def kept(dim: Dim, indices: Mapping[Axis, np.ndarray]) -> list[int]:
    """The positions that stay, found one by one."""
    stay = {(id(axis), int(index)) for axis, chosen in indices.items() for index in chosen}
    listed = {id(axis) for axis in indices}
    return [
        place
        for place, ids in enumerate(positions(dim))
        if all(pair in stay or pair[0] not in listed for pair in ids)
    ]
