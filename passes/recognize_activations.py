"""Hard sigmoids and hard-swishes that are written out, as the operators that they are.

    relu6(x + 3) / 6           =>   hardsigmoid(x)
    clamp(x / 6 + 0.5, 0, 1)   =>   hardsigmoid(x)
    x * relu6(x + 3) / 6       =>   hardswish(x)
    x * hardsigmoid(x)         =>   hardswish(x)

whichever numbers it is written with: `c * clamp(a x + b, low, high)` is a hard sigmoid if `a c = 1/6`,
`b c = 1/2`, `low c = 0` and `high c = 1`, to what the type can tell, and a factor of the gate may stand
behind the product ("Searching for MobileNetV3", Howard et al. 2019, has both functions, and networks of that
time spell them out). A runtime fuses the operator into the convolution before it, and in integers it is a
clamp that quantization does anyway; four operators on their own it keeps. Keras' `clamp(0.2 x + 0.5, 0, 1)`
is another function and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import set_call
from fxcompress.graph.program import Program
from fxcompress.ops.quantization import rectifier_bounds
from fxcompress.passes.contract import Outcome, outcome
from fxcompress.passes.shape_facts import operand, value_of

aten = torch.ops.aten

CLAMPS = frozenset({aten.relu6.default, aten.hardtanh.default, aten.clamp.default})
ROUNDED = 2.0**-50
"""Relative error of a few products of Python's numbers."""


@dataclass(frozen=True)
class RecognizeActivations:
    """Write hard sigmoids and hard-swishes as single operators."""

    name: ClassVar[str] = "recognize-activations"

    def run(self, program: Program) -> Outcome:
        """Return a program in which clamps of that form are one operator each."""
        edited = program.copy()
        changed: list[str] = []
        for node in list(edited.graph.nodes):
            if node.target in CLAMPS:
                changed += _recognized(node)
        for node in list(edited.graph.nodes):
            if node.target == aten.mul.Tensor:
                changed += _gated(node)
        return outcome(program, edited, changed)


@dataclass(frozen=True)
class _Line:
    """A tensor as `scale * x + shift` of an earlier one."""

    x: Node
    scale: float
    shift: float


def _recognized(clamp: Node) -> Iterator[str]:
    """Replace the end of a chain that starts at a clamp, if there is one that makes a known function."""
    bounds, source, made = rectifier_bounds(clamp), operand(clamp), value_of(clamp)
    if bounds is None or source is None or made is None or not made.is_floating_point():
        return
    lines = [line for line in _behind(source) if _has_type(line.x, made.dtype)]
    least = max(torch.finfo(made.dtype).eps / 2, ROUNDED)  # in float32, 1/6 is written as 0.16666667
    for end, factor in _scaled(clamp):
        for line in lines:
            if _is_hard_sigmoid(line, bounds, factor, least):
                set_call(end, aten.hardsigmoid.default, (line.x,))
                yield f"{end.name} is a hard sigmoid of {line.x.name}"
                return
        for line in lines:
            for product, whole in _products(end, line.x, factor):
                if _is_hard_sigmoid(line, bounds, whole, least):
                    set_call(product, aten.hardswish.default, (line.x,))
                    yield f"{product.name} is a hard-swish of {line.x.name}"
                    return


def _has_type(node: Node, dtype: torch.dtype) -> bool:
    value = value_of(node)
    return value is not None and value.dtype == dtype


def _gated(product: Node) -> Iterator[str]:
    """Replace `x * hardsigmoid(x)` where nothing else reads the gate."""
    left, right = operand(product), operand(product, 1)
    for gate, x in ((left, right), (right, left)):
        if gate is None or x is None or gate.target != aten.hardsigmoid.default or len(gate.users) != 1:
            continue
        if operand(gate) is x:
            set_call(product, aten.hardswish.default, (x,))
            yield f"{product.name} is a hard-swish of {x.name}"
            return


def _is_hard_sigmoid(line: _Line, bounds: tuple[float, float], factor: float, least: float) -> bool:
    """Whether `factor * clamp(line, *bounds)` is `clamp(x / 6 + 1/2, 0, 1)`, but for errors of `least`."""
    low, high = bounds
    found = (line.scale * factor * 6.0, line.shift * factor * 2.0, high * factor)
    return low == 0.0 and all(abs(number - 1.0) <= least for number in found)


def _behind(node: Node) -> Iterator[_Line]:
    """The tensor itself, and what it is a line of, step by step; with one shift, since two may round."""
    scale, shift = 1.0, 0.0
    current: Node | None = node
    while current is not None:
        yield _Line(current, scale, shift)
        step = _step(current)
        if step is None or (shift and step[1]):
            return
        scale, shift, current = scale * step[0], shift + scale * step[1], operand(current)


def _scaled(node: Node) -> Iterator[tuple[Node, float]]:
    """A tensor and what scales it in turn, each with the whole factor, while nothing else reads it."""
    factor = 1.0
    while True:
        yield node, factor
        reader = next(iter(node.users), None)
        step = None if reader is None or len(node.users) != 1 else _step(reader)
        if reader is None or step is None or step[1] != 0.0:
            return
        node, factor = reader, factor * step[0]


def _products(gate: Node, x: Node, factor: float) -> Iterator[tuple[Node, float]]:
    """The product of a gate with `x` and what scales that, each with the whole factor."""
    reader = next(iter(gate.users), None)
    if reader is None or len(gate.users) != 1 or reader.target != aten.mul.Tensor:
        return
    if {operand(reader), operand(reader, 1)} == {gate, x}:
        yield from ((end, factor * more) for end, more in _scaled(reader))


def _step(node: Node) -> tuple[float, float] | None:
    """The scale and shift that an operator applies to its first operand, if they are numbers."""
    number = node.args[1] if len(node.args) == 2 and not set(node.kwargs) - {"alpha"} else None
    if isinstance(number, bool) or not isinstance(number, int | float) or operand(node) is None:
        return None
    shift = float(number) * float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    if node.target == aten.add.Tensor:
        return 1.0, shift
    if node.target == aten.sub.Tensor:
        return 1.0, -shift
    if node.target == aten.mul.Tensor:
        return float(number), 0.0
    if node.target == aten.div.Tensor and number:
        return 1.0 / number, 0.0
    return None
