"""Where channels are consumed: the operands, and the dimensions of them, that an operator contracts.

Zeroing one operand's slices switches a channel off. Of two operands it is the stored one (a weight) where
there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fxcompress.ops.arguments import arguments
from fxcompress.ops.einsum import spelled
from fxcompress.ops.families import CELLS, CONVOLUTIONS, RECURRENT, TRANSPOSED

aten = torch.ops.aten


@dataclass(frozen=True)
class Operand:
    """An operand that is contracted.

    Args:
        node: what it is.
        argument: the operator's argument it is passed as.
        dim: the dimension of it that is contracted; may be negative.
        place: where the argument is a list, the position in it.
    """

    node: Node
    argument: str
    dim: int
    place: int | None = None


Row: TypeAlias = Callable[[Node], list[Operand]]


def _weight(dim: int) -> Row:
    return lambda node: [Operand(arguments(node)["weight"], "weight", dim)]


def _convolution(node: Node) -> list[Operand]:
    bound = arguments(node)
    return [Operand(bound["weight"], "weight", 0 if bound["transposed"] else 1)]


def _second(first: str, second: str) -> Row:
    """Matrix products: the right operand's rows when it is stored (or the left one is not), else the left's
    columns.
    """

    def row(node: Node) -> list[Operand]:
        bound = arguments(node)
        left, right = bound[first], bound[second]
        if left.op == "get_attr" and right.op != "get_attr":
            return [Operand(left, first, -1)]
        return [Operand(right, second, -2 if right.meta["val"].dim() > 1 else -1)]

    return row


def _query(node: Node) -> list[Operand]:
    return [Operand(arguments(node)["query"], "query", -1)]


def _einsum(node: Node) -> list[Operand]:
    """Every letter that the result lacks, in one operand that has all of it: a stored one if there is one."""
    bound = arguments(node)
    shapes = [source.meta["val"].shape for source in bound["tensors"]]
    terms, result = spelled(bound["equation"], [len(shape) for shape in shapes])
    found: dict[str, Operand] = {}
    for place, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        for dim, letter in enumerate(term):
            if letter in result or shape[dim] == 1:
                continue
            if letter not in found or found[letter].node.op != "get_attr":
                found[letter] = Operand(bound["tensors"][place], "tensors", dim, place)
    return list(found.values())


def _tensordot(node: Node) -> list[Operand]:
    bound = arguments(node)
    return [Operand(bound["other"], "other", dim) for dim in bound["dims_other"]]


def _bilinear(node: Node) -> list[Operand]:
    weight = arguments(node)["weight"]
    return [Operand(weight, "weight", 1), Operand(weight, "weight", 2)]


def _recurrent(node: Node) -> list[Operand]:
    """The columns of every matrix: they read the input, the hidden state, and the cell where it is
    projected.
    """
    params = arguments(node)["params"]
    return [
        Operand(matrix, "params", -1, place)
        for place, matrix in enumerate(params)
        if matrix.meta["val"].dim() > 1
    ]


def _cell(node: Node) -> list[Operand]:
    bound = arguments(node)
    return [Operand(bound[name], name, -1) for name in ("w_ih", "w_hh")]


CONSUMED: dict[Any, Row] = {
    aten.linear.default: _weight(-1),
    **dict.fromkeys(CONVOLUTIONS, _weight(1)),
    **dict.fromkeys(TRANSPOSED, _weight(0)),
    aten.convolution.default: _convolution,
    aten.matmul.default: _second("self", "other"),
    aten.mm.default: _second("self", "mat2"),
    aten.bmm.default: _second("self", "mat2"),
    aten.mv.default: _second("self", "vec"),
    aten.dot.default: _second("self", "tensor"),
    aten.vdot.default: _second("self", "other"),
    aten.addmm.default: _second("mat1", "mat2"),
    aten.baddbmm.default: _second("batch1", "batch2"),
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _query,
    aten.tensordot.default: _tensordot,
    aten.bilinear.default: _bilinear,
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(CELLS, _cell),
}


def consumed(node: Node) -> list[Operand]:
    """What `node` contracts; empty for operators that contract nothing."""
    row = CONSUMED.get(node.target)
    return [] if row is None else row(node)
