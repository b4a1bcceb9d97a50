"""Operators that move positions between space and windows of it; batch and channels pass."""

from __future__ import annotations

from math import prod

from torch.fx import Node

from fxcompress.axes.expression import product
from fxcompress.ops.arguments import arguments, hints
from fxcompress.ops.dimensions.space import Space, Value

_SPATIAL = "spatial positions"


def unfold(space: Space, node: Node) -> Value:
    """x[.., N, ..] => y[.., windows, .., size]"""
    dims = list(space.of(arguments(node)["self"]))
    place = arguments(node)["dimension"] % len(dims)
    space.freeze(node, dims[place], "seen through windows")
    sizes = hints(node.meta["val"])
    dims[place], size = space.fixed(node, [sizes[place], sizes[-1]], "windows")
    return (*dims, size)


def im2col(space: Space, node: Node) -> Value:
    """x[.., C, H, W] => y[.., C * k * k, L]"""
    bound = arguments(node)
    x = space.of(bound["self"])
    space.freeze(node, x[-2:], "seen through windows")
    kernel, windows = space.fixed(node, [prod(bound["kernel_size"]), hints(node.meta["val"])[-1]], "windows")
    return (*x[:-3], product(x[-3], kernel), windows)


def col2im(space: Space, node: Node) -> Value:
    """x[.., C * k * k, L] => y[.., C, H, W]"""
    bound = arguments(node)
    x, kernel = space.of(bound["self"]), prod(bound["kernel_size"])
    channels, inner = space.factor(node, x[-2], [x[-2].size // kernel, kernel])
    space.freeze(node, (inner, x[-1]), "moved into space")
    return (*x[:-2], channels, *space.fixed(node, hints(node.meta["val"])[-2:], _SPATIAL))


def max_unpool(space: Space, node: Node) -> Value:
    """x[.., C, h, w], places[.., C, h, w] => y[.., C, H, W]"""
    bound = arguments(node)
    rank = 2 if "2d" in str(node.target) else 3
    x = space.broadcast(node, [space.of(bound["self"]), space.of(bound["indices"])])
    space.freeze(node, x[-rank:], "addressed by places in space")
    return (*x[:-rank], *space.fixed(node, hints(node.meta["val"])[-rank:], _SPATIAL))


def grid_sampler(space: Space, node: Node) -> Value:
    """x[N, C, ..], grid[N, *S, d] => y[N, C, *S]"""
    bound = arguments(node)
    x, grid = space.of(bound["input"]), space.of(bound["grid"])
    space.unify(node, x[0], grid[0])
    space.freeze(node, (*x[2:], grid[-1]), "read at places in space")
    return (*x[:2], *grid[1:-1])


def affine_grid(space: Space, node: Node) -> Value:
    """theta[N, d, d + 1] => grid[N, *S, d]"""
    theta = space.of(arguments(node)["theta"])
    space.freeze(node, theta[1:], "coordinates in space")
    return (theta[0], *space.fixed(node, hints(node.meta["val"])[1:], _SPATIAL))
