"""Reading a node's arguments by the names of its operator's schema, defaults filled in."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fxcompress.graph.walk import hint


def arguments(node: Node) -> dict[str, Any]:
    """Arguments of a `call_function` node on an `OpOverload`, by schema name; absent ones take the schema's
    default.
    """
    assert isinstance(node.target, torch._ops.OpOverload), node.target
    bound: dict[str, Any] = {}
    for place, argument in enumerate(node.target._schema.arguments):
        if place < len(node.args):
            bound[argument.name] = node.args[place]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


def tensor_arguments(node: Node) -> list[Node]:
    """Every node among the arguments whose value is a tensor, in order, lists included."""
    return [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), torch.Tensor)]


def hints(value: torch.Tensor) -> tuple[int, ...]:
    """The shape of a (fake) tensor as numbers; a symbolic size by its value in the example."""
    return tuple(hint(size) for size in value.shape)
