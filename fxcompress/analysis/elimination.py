"""Greedy elimination of a group's indices: the maps that read the group, as covariances and rows.

Of a convolution every tap is taken to see the same covariance of channels, without the correlation of
neighbouring pixels. What has no covariance (another activation for a weight, too many positions) counts by
variance times energy, as if its positions were independent.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fxcompress.analysis.evidence import Array, Evidence
from fxcompress.analysis.reading import Read, slice_energy, weight_rows
from fxcompress.graph.program import Program
from fxcompress.numerics.elimination import Refit, elimination
from fxcompress.numerics.saliency import Labels, Scores, pooled


def eliminated(program: Program, size: int, reads: Iterable[Read], evidence: Evidence) -> Scores | None:
    """The error that each index of a group adds when it leaves last; None where nothing reads the group.

    Args:
        program: that is analysed.
        size: of the group.
        reads: the contractions that read the group, with the labels of their positions.
        evidence: with moments and covariances.
    """
    refits, fixed, found = [], np.zeros(size), False
    for feed, width, labels in reads:
        found = True
        covariance = evidence.covariances.get((feed.source.name, feed.dim))
        rows = weight_rows(program, feed, width)
        if covariance is not None and rows is not None:
            refits.append(Refit.of(_positions(labels), _blocks(covariance, rows[1]), rows[0]))
            continue
        moments = evidence.moments[feed.source.name, feed.dim]
        energy = (moments.square - moments.mean**2) * slice_energy(program, feed, width, evidence)
        total = max(float(energy.sum()), np.finfo(np.float64).tiny)
        fixed += pooled(size, [(labels, np.maximum(energy, 0.0) / total)])
    return elimination(size, refits, fixed) if found else None


def _positions(labels: Labels) -> Labels:
    """`[indices, positions per index]` of a label array; every index has as many."""
    inside = np.flatnonzero(labels >= 0)
    order = inside[np.argsort(labels[inside], kind="stable")]
    return order.reshape(int(labels.max()) + 1, -1)


def _blocks(covariance: Array, groups: int) -> Array:
    """The covariance inside each group of a convolution: no output reads two of them."""
    if groups == 1:
        return covariance
    owner = np.arange(len(covariance)) // (len(covariance) // groups)
    return np.where(owner[:, None] == owner[None, :], covariance, 0.0)
