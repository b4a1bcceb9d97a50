"""Where activations feed contractions: the operands that carry data, and the dimension that is summed over.

`ops.consumption` names the operand that switches a channel off, a weight where there is one; here are the
others: what a gate on a channel would multiply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fxcompress.graph import walk
from fxcompress.ops.arguments import arguments
from fxcompress.ops.einsum import spelled
from fxcompress.ops.families import CELLS, CONVOLUTIONS, RECURRENT, TRANSPOSED

aten = torch.ops.aten


@dataclass(frozen=True)
class Feed:
    """An activation that is contracted.

    Args:
        source: the activation.
        dim: the dimension of it that is summed over, not negative.
        other: what it is multiplied with, None where the operator has several such tensors.
        other_dim: the dimension of `other` that is summed over, not negative. For a grouped convolution it is
            the input channels of one group.
    """

    source: Node
    dim: int
    other: Node | None = None
    other_dim: int = 0


Row: TypeAlias = Callable[[dict[str, Any]], list[Feed]]


def _rank(node: Node) -> int:
    return int(node.meta["val"].dim())


def _linear(bound: dict[str, Any]) -> list[Feed]:
    x, weight = bound["input"], bound["weight"]
    return [Feed(x, _rank(x) - 1, weight, _rank(weight) - 1)]


def _convolution(bound: dict[str, Any]) -> list[Feed]:
    x, weight = bound["input"], bound["weight"]
    return [Feed(x, _rank(x) - _rank(weight) + 1, weight, 0 if bound.get("transposed") else 1)]


def _transposed(bound: dict[str, Any]) -> list[Feed]:
    return _convolution(bound | {"transposed": True})


def _product(first: str, second: str) -> Row:
    def row(bound: dict[str, Any]) -> list[Feed]:
        left, right = bound[first], bound[second]
        columns, rows = _rank(left) - 1, max(_rank(right) - 2, 0)
        return [Feed(left, columns, right, rows), Feed(right, rows, left, columns)]

    return row


def _attention(bound: dict[str, Any]) -> list[Feed]:
    query, key = bound["query"], bound["key"]
    last = _rank(query) - 1
    return [Feed(query, last, key, last), Feed(key, last, query, last)]


def _einsum(bound: dict[str, Any]) -> list[Feed]:
    if "." in bound["equation"]:
        return []
    terms, right = spelled(bound["equation"], [_rank(tensor) for tensor in bound["tensors"]])
    found = []
    for place, (term, source) in enumerate(zip(terms, bound["tensors"], strict=True)):
        for dim, letter in enumerate(term):
            partners = [
                (other, terms[at].index(letter))
                for at, other in enumerate(bound["tensors"])
                if at != place and letter in terms[at]
            ]
            if letter not in right:
                found.append(Feed(source, dim, *(partners[0] if len(partners) == 1 else (None, 0))))
    return found


def _recurrent(bound: dict[str, Any]) -> list[Feed]:
    return [Feed(bound["input"], _rank(bound["input"]) - 1)]


def _cell(bound: dict[str, Any]) -> list[Feed]:
    state = bound["hx"][0] if isinstance(bound["hx"], list | tuple) else bound["hx"]
    pairs = ((bound["input"], bound["w_ih"]), (state, bound["w_hh"]))
    return [Feed(source, _rank(source) - 1, weight, 1) for source, weight in pairs]


def _bilinear(bound: dict[str, Any]) -> list[Feed]:
    return [Feed(bound[name], _rank(bound[name]) - 1) for name in ("input1", "input2")]


FED: dict[Any, Row] = {
    aten.linear.default: _linear,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    aten.convolution.default: _convolution,
    **dict.fromkeys(TRANSPOSED, _transposed),
    aten.matmul.default: _product("self", "other"),
    aten.mm.default: _product("self", "mat2"),
    aten.bmm.default: _product("self", "mat2"),
    aten.mv.default: _product("self", "vec"),
    aten.dot.default: _product("self", "tensor"),
    aten.vdot.default: _product("self", "other"),
    aten.addmm.default: _product("mat1", "mat2"),
    aten.baddbmm.default: _product("batch1", "batch2"),
    aten.einsum.default: _einsum,
    aten.bilinear.default: _bilinear,
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(CELLS, _cell),
    aten.scaled_dot_product_attention.default: _attention,
}


def fed(node: Node) -> list[Feed]:
    """The activations that `node` contracts; empty for operators that contract none.

    A sum over a dimension whose size follows the inputs (over tokens) is none: it holds no channels.
    """
    row = FED.get(node.target)
    feeds = [] if row is None else row(arguments(node))
    return [
        feed for feed in feeds if feed.source.op != "get_attr" and not walk.is_symbolic(feed.source, feed.dim)
    ]
