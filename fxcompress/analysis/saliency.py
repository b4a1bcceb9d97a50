"""Saliency of the indices of every group, gathered over all parameters that they touch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fxcompress.analysis.groups import Analysis, Group
from fxcompress.axes.positions import occurrences
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.numerics.saliency import Scores, pooled_l2, relative, squared_sums


def l2(analysis: Analysis) -> dict[str, Scores]:
    """By group name, the L2 saliency of every index relative to the group's mean; shape `[group.size]`."""
    squares: dict[tuple[str, int], Scores] = {}
    return {
        group.name: relative(pooled_l2(group.size, _slices(analysis, group, squares)))
        for group in analysis.groups
    }


def _slices(
    analysis: Analysis, group: Group, squares: dict[tuple[str, int], Scores]
) -> Iterator[tuple[NDArray[np.int64], Scores]]:
    """Labels and squared sums of every trainable member; `squares` keeps what several groups read."""
    for member in group.members:
        tensor = walk.tensor(analysis.program, member.tensor)
        if not isinstance(tensor, torch.nn.Parameter):
            continue
        key = (member.tensor, member.dim)
        if key not in squares:
            squares[key] = squared_sums(tensor.detach().float().numpy(), member.dim)
            if not np.isfinite(squares[key]).all():
                raise InputError(
                    f"the parameter {member.tensor} holds a NaN or an infinity: its channels have no order",
                    hint="pass a model with finite weights",
                )
        for labels in occurrences(member.expression, group.axis):
            yield labels, squares[key]
