"""The forward walk: dimension expressions for every tensor of a program."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch.fx import Node

from fxcompress.analysis.varying import Varying, freeze_sizes_read_as_numbers
from fxcompress.axes.algebra import freeze
from fxcompress.axes.expression import Axis, Reason
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.arguments import hints
from fxcompress.ops.dimensions.space import Dims, Space, Value
from fxcompress.ops.dimensions.table import rule_for

Observer: TypeAlias = Callable[[Space, Node], None]
"""Called after each node that yields tensors, with what is known so far."""


def propagate(program: Program, observe: Observer | None = None) -> Space:
    """Walk the graph once: afterwards every tensor has its dimensions and every obstacle its reason."""
    space = Space()
    varying = Varying(program)
    for node in program.graph.nodes:
        if node.op == "placeholder" and walk.is_tensor(node):
            space.values[node] = space.fixed(node, hints(node.meta["val"]), "a model input")
        elif node.op == "get_attr":
            space.values[node] = _stored(node)
        elif node.op == "call_function" and _tensors(node):
            space.values[node] = _apply(space, node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                if source in space.values:
                    space.freeze(node, space.of(source), "a model output")
        if node in space.values:
            for dims, value in zip(_listed(space.values[node]), _tensors(node), strict=True):
                varying.check(space, node, dims, value)
            if observe is not None:
                observe(space, node)
    freeze_sizes_read_as_numbers(program, space)
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


def _tensors(node: Node) -> list[torch.Tensor]:
    """The tensors that a node yields; several for an operator with several results."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [item for item in values if isinstance(item, torch.Tensor)]


def _listed(value: Value) -> list[Dims]:
    return value if isinstance(value, list) else [value]


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
    if any(isinstance(space.values.get(source), list) for source in node.all_input_nodes):
        return _freeze_all(space, node, "several results read at once")
    try:
        value = rule(space, node)
    except _MISREAD:
        value = None
    if value is None or not _agrees(node, value):
        return _freeze_all(space, node, f"the rule for {node.target} does not describe this use")
    return value


_MISREAD = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""How a rule fails on a use that it was not written for: the answer is the same as to a wrong size."""


def _agrees(node: Node, value: Value) -> bool:
    """Whether the rule's sizes are those of the real result: a wrong rule must freeze, not mislead."""
    wanted = [hints(item) for item in _tensors(node)]
    return [tuple(dim.size for dim in dims) for dims in _listed(value)] == wanted


def _freeze_all(space: Space, node: Node, text: str) -> Value:
    for source in node.all_input_nodes:
        for dims in _listed(space.values.get(source, ())):
            space.freeze(node, dims, text)
    results = [space.fixed(node, hints(item), text) for item in _tensors(node)]
    return results if isinstance(node.meta["val"], tuple | list) else results[0]
