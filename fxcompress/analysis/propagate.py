"""The forward walk: dimension expressions for every tensor of a program."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch.fx import Node

from fxcompress.axes.algebra import freeze
from fxcompress.axes.expression import Axis, Reason
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.arguments import hints, tensor_arguments
from fxcompress.ops.dimensions.space import Dims, Space, Value
from fxcompress.ops.dimensions.table import rule_for


def propagate(program: Program) -> Space:
    """Walk the graph once; afterwards every tensor-valued node has its dimensions and every obstacle its reason."""
    space = Space()
    for node in program.graph.nodes:
        if node.op == "placeholder" and walk.is_tensor(node):
            space.values[node] = space.fixed(node, hints(node.meta["val"]), "a model input")
        elif node.op == "get_attr":
            space.values[node] = _stored(node)
        elif node.op == "call_function" and _yields_tensors(node):
            space.values[node] = _apply(space, node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                if source in space.values:
                    space.freeze(node, space.of(source), "a model output")
    return space


def _stored(node: Node) -> Dims:
    """A stored tensor: free dimensions, unless it holds integers, whose values are positions or codes."""
    value = node.meta["val"]
    dims = tuple(Axis(size, f"{node.target}[{place}]") for place, size in enumerate(hints(value)))
    for dim in dims:
        if not value.dtype.is_floating_point:
            freeze(dim, Reason(f"a constant of {str(value.dtype).removeprefix('torch.')}", node.name))
        elif dim.size < 2:
            freeze(dim, Reason("a single position", node.name))
    return dims


def _yields_tensors(node: Node) -> bool:
    return any(isinstance(value, torch.Tensor) for value in _values(node))


def _values(node: Node) -> Iterator[object]:
    value = node.meta.get("val")
    yield from value if isinstance(value, tuple | list) else (value,)


def _apply(space: Space, node: Node) -> Value:
    if node.target is operator.getitem:
        source, place = node.args
        assert isinstance(source, Node) and isinstance(place, int)
        several = space.values[source]
        assert isinstance(several, list), node
        return several[place]
    rule = rule_for(node.target)
    if rule is None:
        return _freeze_all(space, node, f"no rule for {node.target}")
    value = rule(space, node)
    if not _agrees(node, value):
        return _freeze_all(space, node, f"the rule for {node.target} does not describe this use")
    return value


def _agrees(node: Node, value: Value) -> bool:
    """Whether the rule's sizes are those of the real result: a wrong rule must freeze, not mislead."""
    found = value if isinstance(value, list) else [value]
    wanted = [hints(item) for item in _values(node) if isinstance(item, torch.Tensor)]
    return [tuple(dim.size for dim in dims) for dims in found] == wanted


def _freeze_all(space: Space, node: Node, text: str) -> Value:
    for source in tensor_arguments(node):
        space.freeze(node, space.of(source), text)
    results = [
        space.fixed(node, hints(item), text) if isinstance(item, torch.Tensor) else ()
        for item in _values(node)
    ]
    return results if isinstance(node.meta["val"], tuple | list) else results[0]
