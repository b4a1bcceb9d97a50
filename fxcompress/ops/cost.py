"""What an operator costs: multiply-accumulates as sums of products of dimension expressions.

Because the terms are expressions, a pruning plan is priced exactly without touching the graph. Only
contractions are counted, as is usual (a ResNet-50 at 224x224 has 4.09 GMACs): element-wise work,
normalisation and pooling are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fxcompress.axes.expression import Dim
from fxcompress.ops.arguments import arguments
from fxcompress.ops.dimensions.space import Dims, Space
from fxcompress.ops.einsum import spelled
from fxcompress.ops.families import CELLS, CONVOLUTIONS, RECURRENT, TRANSPOSED

Term: TypeAlias = tuple[Dim, ...]
"""A product of dimension sizes."""

aten = torch.ops.aten


def _matmul(space: Space, node: Node) -> list[Term]:
    a = node.args[0]
    assert isinstance(a, Node)
    return [(*space.of(node), space.of(a)[-1])]


def _addmm(space: Space, node: Node) -> list[Term]:
    a = node.args[1]
    assert isinstance(a, Node)
    return [(*space.of(node), space.of(a)[-1])]


def _linear(space: Space, node: Node) -> list[Term]:
    return [(*space.of(node), space.of(arguments(node)["weight"])[-1])]


def _convolution(space: Space, node: Node) -> list[Term]:
    """Forward: every output element meets I inputs per kernel position; transposed: every input element, O
    outputs.
    """
    bound = arguments(node)
    weight: Dims = space.of(bound["weight"])
    if bound.get("transposed") or "transpose" in str(node.target):
        return [(*space.of(bound["input"]), *weight[1:])]
    return [(*space.of(node), *weight[1:])]


def _attention(space: Space, node: Node) -> list[Term]:
    """Q @ k and probabilities @ v."""
    bound = arguments(node)
    q, k, v = (space.of(bound[name]) for name in ("query", "key", "value"))
    return [(*q, k[-2]), (*q[:-1], k[-2], v[-1])]


def _einsum(space: Space, node: Node) -> list[Term]:
    """Every distinct letter once, by the widest dimension it stands for (the cost of the unfactored
    contraction).
    """
    bound = arguments(node)
    operands = [space.of(operand) for operand in bound["tensors"]]
    terms, _ = spelled(bound["equation"], [len(dims) for dims in operands])
    letters: dict[str, Dim] = {}
    for term, dims in zip(terms, operands, strict=True):
        for letter, dim in zip(term, dims, strict=True):
            if letter not in letters or letters[letter].size < dim.size:
                letters[letter] = dim
    return [tuple(letters.values())]


def _tensordot(space: Space, node: Node) -> list[Term]:
    bound = arguments(node)
    dims = space.of(bound["self"])
    return [(*space.of(node), *(dims[place] for place in bound["dims_self"]))]


def _bilinear(space: Space, node: Node) -> list[Term]:
    """y[.., O] = x[.., I] w[O, I, J] z[.., J]"""
    return [(*space.of(node), *space.of(arguments(node)["weight"])[1:])]


def _recurrent(space: Space, node: Node) -> list[Term]:
    """Every matrix of every layer and direction meets every step of every sequence."""
    bound = arguments(node)
    steps = space.of(bound["input"])[:-1]
    matrices = [space.of(weight) for weight in bound["params"]]
    return [(*steps, *matrix) for matrix in matrices if len(matrix) == 2]


def _cell(space: Space, node: Node) -> list[Term]:
    """One step: both matrices meet every sample."""
    bound = arguments(node)
    samples = space.of(bound["input"])[:-1]
    return [(*samples, *space.of(bound[name])) for name in ("w_ih", "w_hh")]


MACS: dict[Any, Callable[[Space, Node], list[Term]]] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.dot.default: _matmul,
    aten.vdot.default: _matmul,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.einsum.default: _einsum,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    aten.convolution.default: _convolution,
    **dict.fromkeys(TRANSPOSED, _convolution),
    aten.scaled_dot_product_attention.default: _attention,
    aten.tensordot.default: _tensordot,
    aten.bilinear.default: _bilinear,
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(CELLS, _cell),
}
