"""Operators that multiply and sum: linear, matrix products, einsum, convolutions.

The contracted dimension disappears from the result; it is where a removed channel is consumed.
"""

from __future__ import annotations

from torch.fx import Node

from fxcompress.axes.expression import Dim, product
from fxcompress.graph.walk import hint
from fxcompress.ops.arguments import arguments
from fxcompress.ops.dimensions.space import Dims, Space, Value
from fxcompress.ops.einsum import spelled


def linear(space: Space, node: Node) -> Value:
    """x[.., I], w[O, I], b[O] => y[.., O]; a vector for a weight gives y[..]."""
    bound = arguments(node)
    x, weight = space.of(bound["input"]), space.of(bound["weight"])
    space.unify(node, weight[-1], x[-1])
    if bound["bias"] is not None and len(weight) > 1:
        space.unify(node, weight[0], space.of(bound["bias"])[0])
    return (*x[:-1], *weight[:-1])


def product_of(space: Space, node: Node, a: Dims, b: Dims) -> Dims:
    """a[.., M, K] @ b[.., K, N] => y[.., M, N], vectors allowed on either side, leading dimensions
    broadcast.
    """
    space.unify(node, a[-1], b[-2] if len(b) > 1 else b[-1])
    lead = space.broadcast(node, [a[:-2], b[:-2]])
    return (*lead, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def matmul(space: Space, node: Node) -> Value:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`."""
    a, b = (space.of(source) for source in node.args[:2] if isinstance(source, Node))
    return product_of(space, node, a, b)


def addmm(space: Space, node: Node) -> Value:
    """B + x @ w, as in `addmm` and `baddbmm`."""
    bias, a, b = (space.of(source) for source in node.args[:3] if isinstance(source, Node))
    return space.broadcast(node, [product_of(space, node, a, b), bias])


def einsum(space: Space, node: Node) -> Value:
    """Equal letters are equal dimensions, an ellipsis is letters of its own; a size of one is broadcast."""
    bound = arguments(node)
    operands = [space.of(source) for source in bound["tensors"]]
    terms, result = spelled(bound["equation"], [len(dims) for dims in operands])
    letters: dict[str, Dim] = {}
    for term, dims in zip(terms, operands, strict=True):
        for letter, dim in zip(term, dims, strict=True):
            known = letters.setdefault(letter, dim)
            if known.size == 1:
                letters[letter] = dim
            elif dim.size != 1:
                space.unify(node, known, dim)
    return tuple(letters[letter] for letter in result)


def tensordot(space: Space, node: Node) -> Value:
    """x[.., K], w[K, ..] => y[..], any dimensions contracted in pairs."""
    bound = arguments(node)
    a, b = space.of(bound["self"]), space.of(bound["other"])
    mine = [place % len(a) for place in bound["dims_self"]]
    its = [place % len(b) for place in bound["dims_other"]]
    for place, other in zip(mine, its, strict=True):
        space.unify(node, a[place], b[other])
    rest = [dim for place, dim in enumerate(a) if place not in mine]
    return (*rest, *(dim for place, dim in enumerate(b) if place not in its))


def bilinear(space: Space, node: Node) -> Value:
    """x[.., I], w[O, I, J], z[.., J], b[O] => y[.., O]"""
    bound = arguments(node)
    x, z, weight = (space.of(bound[name]) for name in ("input1", "input2", "weight"))
    space.unify(node, weight[1], x[-1])
    space.unify(node, weight[2], z[-1])
    if bound["bias"] is not None:
        space.unify(node, weight[0], space.of(bound["bias"])[0])
    return (*space.broadcast(node, [x[:-1], z[:-1]]), weight[0])


def convolution(space: Space, node: Node) -> Value:
    """x[N, G*I, ..], w[G*O, I, ..], b[G*O] => y[N, G*O, ..]; depthwise is the case I = 1."""
    bound = arguments(node)
    if bound.get("transposed"):
        return transposed_convolution(space, node)
    x, weight, groups = space.of(bound["input"]), space.of(bound["weight"]), bound["groups"]
    channel = len(x) - len(weight) + 1
    inputs = space.factor(node, x[channel], [groups, x[channel].size // groups])
    space.unify(node, weight[1], inputs[1])
    outputs = space.factor(node, weight[0], [groups, weight[0].size // groups])
    space.unify(node, outputs[0], inputs[0])
    return _convolved(space, node, weight[0])


def transposed_convolution(space: Space, node: Node) -> Value:
    """x[N, G*I, ..], w[G*I, O, ..], b[G*O] => y[N, G*O, ..]"""
    bound = arguments(node)
    x, weight, groups = space.of(bound["input"]), space.of(bound["weight"]), bound["groups"]
    channel = len(x) - len(weight) + 1
    space.unify(node, weight[0], x[channel])
    steps = space.factor(node, weight[0], [groups, weight[0].size // groups])
    return _convolved(space, node, product(steps[0], weight[1]))


def _convolved(space: Space, node: Node, output: Dim) -> Dims:
    """The result of a convolution: new channels, frozen kernel and spatial dimensions."""
    bound = arguments(node)
    x, weight = space.of(bound["input"]), space.of(bound["weight"])
    channel = len(x) - len(weight) + 1
    if bound["bias"] is not None:
        space.unify(node, output, space.of(bound["bias"])[0])
    space.freeze(node, weight[2:], "a kernel")
    space.freeze(node, x[channel + 1 :], "convolved over")
    sizes = [hint(size) for size in node.meta["val"].shape[channel + 1 :]]
    return (*x[:channel], output, *space.fixed(node, sizes, "spatial positions"))
