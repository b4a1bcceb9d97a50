"""Distances and angles: the dimension that is summed over is tagged, since removal changes the result."""

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


def similarity(space: Space, node: Node) -> Value:
    """`cosine_similarity` and `pairwise_distance`: two tensors, broadcast, along one dimension."""
    bound = arguments(node)
    dims = list(space.broadcast(node, [space.of(bound["x1"]), space.of(bound["x2"])]))
    place = bound.get("dim", -1) % len(dims)
    normalise_over(dims[place], node.name)
    dims[place : place + 1] = [space.unit(node)] if bound.get("keepdim") else []
    return tuple(dims)
