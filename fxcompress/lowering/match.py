"""What the rewrites ask of an onnx-graphsurgeon graph, and the two edits they make.

A rewrite is a function `rewrite(graph) -> int`: it edits the graph in place and says at how many places. It
never changes what the graph computes; nodes that lose their last reader are removed by `graph.cleanup()`
afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray


def constant(tensor: Any) -> NDArray[Any] | None:
    """The array of a stored tensor, None for a computed one."""
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def maker(tensor: Any, op_type: str) -> Any | None:
    """The node that makes `tensor`, if it is an `op_type`."""
    if isinstance(tensor, gs.Constant) or not tensor.inputs or tensor.inputs[0].op != op_type:
        return None
    return tensor.inputs[0]


def integers(node: Any, position: int) -> list[int] | None:
    """A stored integer input of a node as a list; None when it is absent or computed."""
    if len(node.inputs) <= position:
        return None
    values = constant(node.inputs[position])
    return None if values is None else [int(value) for value in np.atleast_1d(values)]


def is_output(graph: Any, tensor: Any) -> bool:
    """Whether a tensor is an output of the graph."""
    return any(tensor is output for output in graph.outputs)


def only_read_by(graph: Any, tensor: Any, nodes: Sequence[Any]) -> bool:
    """Whether nothing but `nodes` reads a tensor."""
    readers = {id(node) for node in nodes}
    return not is_output(graph, tensor) and all(id(reader) in readers for reader in tensor.outputs)


def redirect(graph: Any, old: Any, new: Any) -> bool:
    """Let every reader of `old` read `new`; declined for a graph output, whose name is a promise."""
    if is_output(graph, old):
        return False
    for reader in list(old.outputs):
        reader.inputs = [new if one is old else one for one in reader.inputs]
    return True


def same_constant(left: Any, right: Any) -> bool:
    """Whether two tensors are one, or stored ones that hold the same values of the same type."""
    if left is right:
        return True
    one, other = constant(left), constant(right)
    if one is None or other is None:
        return False
    return one.dtype == other.dtype and one.shape == other.shape and bool(np.array_equal(one, other))
