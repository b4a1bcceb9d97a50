"""What contractions read of a group: activations with labelled positions, and the weights that they meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from fxcompress.analysis.evidence import Array, Evidence
from fxcompress.analysis.groups import Analysis
from fxcompress.axes.expression import Axis, leaves
from fxcompress.axes.positions import occurrences
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.numerics.saliency import Labels, Scores, squared_sums
from fxcompress.ops.feeding import Feed, fed

Read: TypeAlias = tuple[Feed, int, Labels]
"""A contraction, how many positions it sums over, and which index of the group each of them belongs to."""


class Readers:
    """By axis, the contractions that sum over it."""

    def __init__(self, analysis: Analysis) -> None:
        self.space = analysis.space
        self.feeds: dict[Axis, list[Feed]] = {}
        for node in analysis.program.graph.nodes:
            for feed in fed(node):
                for axis in dict.fromkeys(leaves(self.space.of(feed.source)[feed.dim])):
                    self.feeds.setdefault(axis, []).append(feed)

    def of(self, axis: Axis) -> Iterator[Read]:
        """Every contraction that sums over an axis, once per occurrence of the axis in what it reads."""
        for feed in self.feeds.get(axis, ()):
            dim = self.space.of(feed.source)[feed.dim]
            for labels in occurrences(dim, axis):
                yield feed, dim.size, labels


def weight_rows(program: Program, feed: Feed, width: int) -> tuple[Array, int] | None:
    """The stored weight of a contraction as `[positions, outputs]`, and into how many groups it falls.

    A grouped convolution's `[G * O, I, ..]` becomes `[G * I, O * ..]`. None where the weight is computed.
    """
    if feed.other is None or feed.other.op != "get_attr":
        return None
    weight = walk.tensor(program, feed.other).detach().double().numpy()
    groups = width // weight.shape[feed.other_dim]
    if groups > 1:
        weight = weight.reshape(groups, -1, *weight.shape[1:])
        return np.moveaxis(weight, 2, 1).reshape(width, -1), groups
    return np.moveaxis(weight, feed.other_dim, 0).reshape(width, -1), 1


def slice_energy(program: Program, feed: Feed, width: int, evidence: Evidence) -> Scores:
    """The sum of squares of what each position of an activation is multiplied with.

    For a stored weight its slices; for another activation its mean square; ones where it is neither.
    """
    rows = weight_rows(program, feed, width)
    if rows is not None and feed.other is not None:
        return finite(str(feed.other.target), squared_sums(rows[0], 0))
    moments = None if feed.other is None else evidence.moments.get((feed.other.name, feed.other_dim))
    return np.ones(width) if moments is None else moments.square


def finite(name: str, values: Array) -> Array:
    """The values of a parameter; raises InputError where one is no number."""
    if not np.isfinite(values).all():
        raise InputError(
            f"the parameter {name} holds a NaN or an infinity: its channels have no order",
            hint="pass a model with finite weights",
        )
    return values
