"""How much noise int8 brings into each operator, relative to what it computes with: a rough price of error.

The noise of a quantized tensor is a twelfth of its squared step, over its mean square; that of a weight is
what rounding really does to it. An operator's is the sum over its weight, its inputs and its output. How it
travels to the model's output is not followed: that needs a run per operator (`analysis` of sensitivity).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.program import Program
from fxcompress.numerics.affine import channel_scales, quantize_channels
from fxcompress.numerics.ranges import Range
from fxcompress.ops.quantization import activations, role

WEIGHT_LIMIT = 127


def operator_noise(
    program: Program, operators: Iterable[str], ranges: Mapping[str, Range], inputs: Sequence[Tensor]
) -> dict[str, float]:
    """Relative squared noise that each operator has in int8.

    Args:
        program: in float.
        operators: node names.
        ranges: of the tensors that may be quantized.
        inputs: a few samples, flat, on which mean squares are measured.
    """
    squares = _MeanSquares(program.copy().eval(), set(ranges))
    with torch.no_grad():
        squares.run_flat(list(inputs))
    nodes = {node.name: node for node in program.graph.nodes}
    return {name: _noise(program, nodes[name], ranges, squares.found) for name in operators if name in nodes}


class _MeanSquares(Executor):
    """Measures the mean square of the tensors asked for."""

    def __init__(self, program: Program, wanted: set[str]) -> None:
        super().__init__(program)
        self.wanted = wanted
        self.found: dict[str, float] = {}

    def after(self, node: fx.Node, value: Any) -> Any:
        """The value passes through."""
        if node.name in self.wanted and isinstance(value, Tensor) and value.is_floating_point():
            self.found[node.name] = float(value.double().square().mean()) if value.numel() else 0.0
        return value


def _noise(
    program: Program, node: fx.Node, ranges: Mapping[str, Range], squares: Mapping[str, float]
) -> float:
    row = role(node)
    if row is None:
        return 0.0
    tensors = {*activations(node, row), node}
    total = sum(
        _step_noise(ranges[item.name], squares.get(item.name, 0.0)) for item in tensors if item.name in ranges
    )
    weight = walk.argument(node, row.weight) if row.weight is not None else None
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        total += _weight_noise(walk.tensor(program, weight).detach(), row.axis)
    return total


def _step_noise(found: Range, square: float) -> float:
    if not square or not found.finite:
        return 0.0
    step = (max(found.high, 0.0) - min(found.low, 0.0)) / 255
    return step * step / 12 / square


def _weight_noise(values: Tensor, axis: int) -> float:
    if values.dim() < 2 or not values.is_floating_point():
        return 0.0
    axis %= values.dim()
    scales = channel_scales(values, axis, WEIGHT_LIMIT)
    shape = [-1 if dim == axis else 1 for dim in range(values.dim())]
    rounded = quantize_channels(values, scales, axis, WEIGHT_LIMIT).float() * scales.reshape(shape)
    power = float(values.double().square().sum())
    return float((values - rounded).double().square().sum()) / power if power else 0.0
