"""Operators that act position by position, and those that leave every position where it is."""

from __future__ import annotations

from torch.fx import Node

from fxcompress.axes.expression import Dim
from fxcompress.ops.arguments import arguments, hints, tensor_arguments
from fxcompress.ops.dimensions.space import Dims, Space, Value


def elementwise(space: Space, node: Node) -> Value:
    """All tensor arguments, broadcast together."""
    return space.broadcast(node, [space.of(source) for source in tensor_arguments(node)])


def same(space: Space, node: Node) -> Value:
    """The first argument's dimensions, unchanged."""
    return space.of(node.all_input_nodes[0])


def dropout_with_mask(space: Space, node: Node) -> Value:
    """`dropout` of the core dialect: also returns what it kept."""
    x = space.of(node.all_input_nodes[0])
    return [x, x]


def expand(space: Space, node: Node) -> Value:
    """A size of one repeated is a free factor of its own (grouped-query attention's repeats); others pass."""
    dims, sizes = space.of(node.all_input_nodes[0]), hints(node.meta["val"])
    lead = len(sizes) - len(dims)
    result: list[Dim] = []
    for place, size in enumerate(sizes):
        source = dims[place - lead] if place >= lead else None
        if source is not None and source.size == size:
            result.append(source)
        elif isinstance(node.meta["val"].shape[place], int):
            result.append(space.free(node, size))
        else:
            result.extend(space.fixed(node, [size], "a size that varies at run time"))
    return tuple(result)


def expand_as(space: Space, node: Node) -> Value:
    """`expand` to the shape of a second tensor."""
    return space.broadcast(node, [space.of(source) for source in tensor_arguments(node)])


def broadcast_tensors(space: Space, node: Node) -> Value:
    """Every tensor in the shape of all of them."""
    dims = space.broadcast(node, [space.of(source) for source in tensor_arguments(node)])
    return [dims] * len(node.meta["val"])


def outer(space: Space, node: Node) -> Value:
    """x[M], y[N] => z[M, N]"""
    x, y = (space.of(source) for source in arguments(node).values())
    return (*x, *y)


def glu(space: Space, node: Node) -> Value:
    """x[2C] => x[C]: the two halves are coupled position by position."""
    bound = arguments(node)
    dims = list(space.of(bound["self"]))
    half = dims[bound["dim"]].size // 2
    first, second = space.split(node, dims[bound["dim"]], [half, half])
    space.unify(node, first, second)
    dims[bound["dim"]] = first
    return tuple(dims)


def prelu(space: Space, node: Node) -> Value:
    """One slope per channel (dimension 1), or one for all."""
    x, slope = (space.of(source) for source in node.all_input_nodes)
    if slope and slope[0].size != 1 and len(x) > 1:
        space.unify(node, slope[0], x[1])
    return x


def triangle(space: Space, node: Node) -> Value:
    """`tril`/`triu` compare the positions of the last two dimensions with each other."""
    dims: Dims = space.of(node.all_input_nodes[0])
    space.freeze(node, dims[-2:], "positions compared with each other")
    return dims
