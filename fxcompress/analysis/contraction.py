"""Operators with a stored operand, seen as a matrix product: rows of inputs times a matrix.

A linear, a product with a stored matrix, a convolution (grouped, depthwise, strided, dilated), a transposed
one: all become `[groups, rows, inputs] @ [groups, inputs, outputs]`, and the matrix can be written back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph import walk
from fxcompress.numerics.patches import padded, patches, spread
from fxcompress.ops.arguments import arguments
from fxcompress.ops.consumption import consumed

aten = torch.ops.aten


@dataclass(frozen=True)
class Form:
    """How an operator is read as a matrix product.

    Args:
        source: the node of its input.
        weight: the node of its stored operand.
        bias: the node of its bias, or None.
        groups: independent products side by side.
        channels: the output dimension that counts outputs.
    """

    source: Node
    weight: Node
    bias: Node | None
    groups: int = 1
    channels: int = -1

    def inputs(self, weight: Tensor) -> int:
        """Unknowns per output."""
        return self.matrix(weight).shape[1]

    def matrix(self, weight: Tensor) -> Tensor:
        """The stored operand as `[groups, inputs, outputs]`."""
        raise NotImplementedError

    def stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`, in the shape of the stored operand."""
        raise NotImplementedError

    def rows(self, x: Tensor, places: Tensor) -> Tensor:
        """`[groups, rows, inputs]`: what the operator reads at some places of each sample."""
        raise NotImplementedError

    def picked(self, y: Tensor, places: Tensor) -> Tensor:
        """`[groups, rows, outputs]`: what it yields there; `y` is its output or a tensor of that shape."""
        flat = y.movedim(self.channels, -1)
        flat = flat.reshape(y.shape[0] if y.dim() > 1 else 1, -1, y.shape[self.channels])[:, places]
        return flat.reshape(-1, self.groups, flat.shape[-1] // self.groups).transpose(0, 1)

    def places(self, y: Tensor) -> int:
        """How many places per sample its output has."""
        return prod(y.shape) // (y.shape[self.channels] * (y.shape[0] if y.dim() > 1 else 1))


@dataclass(frozen=True)
class Product(Form):
    """A linear (`mirrored`: the weight is `[out, in]`) or a product with a stored matrix `[in, out]`."""

    mirrored: bool = True

    def matrix(self, weight: Tensor) -> Tensor:
        return (weight.mT if self.mirrored else weight)[None]

    def stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        return (matrix[0].mT if self.mirrored else matrix[0]).to(like.dtype).contiguous()

    def rows(self, x: Tensor, places: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0] if x.dim() > 1 else 1, -1, x.shape[-1])[:, places]
        return flat.reshape(1, -1, x.shape[-1])


@dataclass(frozen=True)
class Convolution(Form):
    """A convolution `[out, in / groups, *kernel]`; a transposed one is `[in, out / groups, *kernel]`."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    transposed: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        if self.transposed:
            weight = _mirrored(weight, self.groups)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).mT

    def stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        rows = matrix.mT.to(like.dtype)
        if not self.transposed:
            return rows.reshape(like.shape).contiguous()
        spatial = like.shape[2:]
        plain = rows.reshape(self.groups * like.shape[1], like.shape[0] // self.groups, *spatial)
        return _mirrored(plain, self.groups).contiguous()

    def rows(self, x: Tensor, places: Tensor) -> Tensor:
        if self.transposed:
            x = spread(x, self.stride)
        steps = (1,) * len(self.stride) if self.transposed else self.stride
        read = patches(padded(x, self.before, self.after), self.kernel, steps, self.dilation, places)
        flat = read.reshape(read.shape[0] * read.shape[1], self.groups, -1)
        return flat.transpose(0, 1)


def _mirrored(weight: Tensor, groups: int) -> Tensor:
    """`[in, out / groups, *k]` to `[out, in / groups, *k]` with the kernel turned around, and back."""
    shape = (groups, weight.shape[0] // groups, weight.shape[1])
    turned = weight.reshape(*shape, *weight.shape[2:]).transpose(1, 2).flip(tuple(range(3, weight.dim() + 1)))
    return turned.reshape(groups * weight.shape[1], weight.shape[0] // groups, *weight.shape[2:])


def form(node: Node) -> Form | str | None:
    """A node as a product with a stored operand, or why it cannot be read so; None if there is no operand."""
    operands = consumed(node)
    if not operands:
        return None
    if len(operands) > 1 or operands[0].place is not None:
        return "it contracts more than two factors at once"
    weight = operands[0].node
    if weight.op != "get_attr":
        return "its weight is computed, not stored" if not walk.depends_on_input(weight) else None
    bound = arguments(node)
    if node.target is aten.linear.default:
        return Product(bound["input"], weight, bound["bias"])
    if node.target in (aten.mm.default, aten.matmul.default, aten.addmm.default):
        return _product(node, operands[0].argument, bound)
    if "stride" in bound:
        return _convolution(node, bound)
    return f"{node.target} is not read as a product with a stored matrix"


def _product(node: Node, argument: str, bound: dict[str, Any]) -> Form | str:
    left = "mat1" if "mat1" in bound else "self"
    if argument == left or walk.value(bound[argument]).dim() != 2:
        return "its stored operand is not a matrix on the right"
    bias = None
    if node.target is aten.addmm.default:
        bias = bound["self"]
        if bound["alpha"] != 1 or bound["beta"] != 1 or walk.value(bias).dim() != 1:
            return "its terms are scaled, or its bias is not a vector"
    return Product(bound[left], bound[argument], bias, mirrored=False)


def _convolution(node: Node, bound: dict[str, Any]) -> Form | str:
    rank = walk.value(bound["weight"]).dim() - 2
    if walk.value(bound["input"]).dim() != rank + 2:
        return "its input has no batch dimension"
    if not isinstance(bound["groups"], int):
        return "its number of groups varies"
    kernel = walk.hint_shape(bound["weight"])[2:]
    stride, dilation = _each(bound["stride"], rank), _each(bound["dilation"], rank)
    transposed = bool(bound.get("transposed", False)) or "conv_transpose" in str(node.target)
    reach = [apart * (width - 1) for apart, width in zip(dilation, kernel, strict=True)]
    if bound["padding"] == "valid":
        before = after = [0] * rank
    elif bound["padding"] == "same":
        before = [total // 2 for total in reach]
        after = [total - half for total, half in zip(reach, before, strict=True)]
    else:
        before = after = list(_each(bound["padding"], rank))
    if transposed:
        extra = _each(bound["output_padding"], rank)
        before = [total - pad for total, pad in zip(reach, before, strict=True)]
        after = [total + more for total, more in zip(before, extra, strict=True)]
    return Convolution(
        bound["input"], bound["weight"], bound["bias"], bound["groups"], 1,
        kernel, stride, dilation, tuple(before), tuple(after), transposed,
    )  # fmt: skip


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    numbers = [value] if isinstance(value, int) else list(value)
    return tuple(int(number) for number in (numbers * rank if len(numbers) == 1 else numbers))
