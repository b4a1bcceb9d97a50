"""Distances, angles, areas: a dimension that is summed over is tagged, since removal changes the result."""

from __future__ import annotations

from torch.fx import Node

from fxcompress.axes.algebra import normalise_over
from fxcompress.ops.arguments import arguments
from fxcompress.ops.dimensions.space import Space, Value


def cdist(space: Space, node: Node) -> Value:
    """x[.., P, M], y[.., R, M] => d[.., P, R]"""
    bound = arguments(node)
    x, y = space.of(bound["x1"]), space.of(bound["x2"])
    space.unify(node, x[-1], y[-1])
    normalise_over(x[-1], node.name)
    return (*space.broadcast(node, [x[:-2], y[:-2]]), x[-2], y[-2])


def cross(space: Space, node: Node) -> Value:
    """The product of vectors of three: those stay, everything else is broadcast."""
    bound = arguments(node)
    x, y = space.of(bound["self"]), space.of(bound["other"])
    result = space.broadcast(node, [x, y])
    threes = [place for place, dim in enumerate(result) if dim.size == 3]
    place = threes[0] if bound["dim"] is None else bound["dim"] % len(result)
    space.freeze(node, (x[place], y[place]), "components of a vector")
    return result


def similarity(space: Space, node: Node) -> Value:
    """`cosine_similarity` and `pairwise_distance`: two tensors, broadcast, along one dimension."""
    bound = arguments(node)
    dims = list(space.broadcast(node, [space.of(bound["x1"]), space.of(bound["x2"])]))
    place = bound.get("dim", -1) % len(dims)
    normalise_over(dims[place], node.name)
    dims[place : place + 1] = [space.unit(node)] if bound.get("keepdim") else []
    return tuple(dims)
