"""Statistics per channel of tensors, from data that streams through the program once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program
from fxcompress.numerics.equalization import ChannelStatistics

BATCHES = 64
"""Batches that are read: ranges of channels settle long before."""


def channel_statistics(
    program: Program, batches: Iterable[Any], axes: Mapping[fx.Node, int]
) -> dict[fx.Node, ChannelStatistics]:
    """Statistics of the channels of each node given, which lie along its axis.

    Raises:
        InputError: no batch, or a NaN or infinity in one of the tensors.
    """
    observer = _Observer(program, axes)
    count = 0
    for count, flat in enumerate(flat_batches(program, batches), start=1):
        with torch.no_grad():
            observer.run_flat(flat)
        if count == BATCHES:
            break
    if count == 0:
        raise InputError("the calibration data is empty", hint="pass an iterable with at least one batch")
    for node, seen in observer.seen.items():
        if not bool((seen.low.isfinite() & seen.high.isfinite()).all()):
            raise InputError(
                f"{node.name} holds a NaN or an infinity for the calibration data",
                hint="look at the calibration data, and at the model's numerics on it",
                node=node.format_node(),
                source=walk.source(node),
            )
    return observer.seen


class _Observer(Executor):
    def __init__(self, program: Program, axes: Mapping[fx.Node, int]) -> None:
        super().__init__(program)
        self.axes = axes
        self.seen = {node: ChannelStatistics() for node in axes}

    def after(self, node: fx.Node, value: Any) -> Any:
        """Take in the node's channels; the value passes through."""
        if node in self.axes and isinstance(value, Tensor):
            self.seen[node].update(value, self.axes[node])
        return value
