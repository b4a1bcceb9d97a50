"""Where channels are consumed: the operand, and its dimension, that an operator contracts.

Zeroing that operand's slices switches the channel off. The operand is the stored one (a weight) where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fxcompress.graph.walk import argument

aten = torch.ops.aten

Operand: TypeAlias = tuple[Node, int]
"""An operand and the dimension of it that is contracted."""


def _weight(dim: int) -> Callable[[Node], Operand]:
    return lambda node: (argument(node, "weight"), dim)


def _convolution(node: Node) -> Operand:
    return argument(node, "weight"), 0 if argument(node, "transposed") else 1


def _second(first: int) -> Callable[[Node], Operand]:
    """Matrix products: the right operand's rows when it is stored (or the left one is not), else the left's columns."""

    def operand(node: Node) -> Operand:
        left, right = node.args[first], node.args[first + 1]
        assert isinstance(left, Node) and isinstance(right, Node)
        if left.op == "get_attr" and right.op != "get_attr":
            return left, -1
        return right, -2 if right.meta["val"].dim() > 1 else -1

    return operand


def _query(node: Node) -> Operand:
    return argument(node, "query"), -1


CONSUMED: dict[Any, Callable[[Node], Operand]] = {
    aten.linear.default: _weight(1),
    aten.conv1d.default: _weight(1),
    aten.conv1d.padding: _weight(1),
    aten.conv2d.default: _weight(1),
    aten.conv2d.padding: _weight(1),
    aten.conv3d.default: _weight(1),
    aten.conv3d.padding: _weight(1),
    aten.conv_transpose1d.default: _weight(0),
    aten.conv_transpose2d.input: _weight(0),
    aten.conv_transpose3d.input: _weight(0),
    aten.convolution.default: _convolution,
    aten.matmul.default: _second(0),
    aten.mm.default: _second(0),
    aten.bmm.default: _second(0),
    aten.mv.default: _second(0),
    aten.dot.default: _second(0),
    aten.addmm.default: _second(1),
    aten.baddbmm.default: _second(1),
    aten.scaled_dot_product_attention.default: _query,
}


def consumed(node: Node) -> Operand | None:
    """The operand that `node` contracts and the dimension it contracts, or None for operators that contract nothing."""
    row = CONSUMED.get(node.target)
    return None if row is None else row(node)
