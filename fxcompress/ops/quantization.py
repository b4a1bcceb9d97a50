"""What each ATen operator is to quantization: one row per overload, nothing about any runtime.

A row names the operator's *kind* and its operands. Which kinds have an integer kernel, what such a kernel
writes and what it swallows is the target's (`fxcompress.targets`). An operator without a row is left in
float and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from fxcompress.graph import walk

aten = torch.ops.aten


class Kind(StrEnum):
    """What an operator does to numbers, as far as integers are concerned."""

    CONVOLUTION = "convolution"
    TRANSPOSED = "transposed convolution"
    LINEAR = "linear"
    MATMUL = "product of two activations"
    ATTENTION = "attention"
    ADD = "addition"
    MULTIPLY = "multiplication"
    CONCATENATE = "concatenation"
    AVERAGE = "average pooling"
    GLOBAL_AVERAGE = "global average pooling"
    RECTIFY = "rectifier"
    SIGMOID = "sigmoid"
    GATE = "self-gated activation"
    LEAKY = "leaky rectifier"
    HARD_SIGMOID = "hard sigmoid"
    PAD = "zero padding"
    LAYOUT = "layout"
    NORM = "normalisation"
    SMOOTH = "smooth function"
    LOOKUP = "table lookup"


@dataclass(frozen=True)
class Role:
    """The operands of an operator, by their names in its schema.

    `activations` are tensors, or one list of tensors, that vary with the input; `weight` varies along
    `axis` with the output channel; a layout operator keeps every value and with it the scale.
    """

    kind: Kind
    activations: tuple[str, ...] = ("self",)
    weight: str | None = None
    bias: str | None = None
    axis: int = 0


_CONVOLUTION = Role(Kind.CONVOLUTION, ("input",), "weight", "bias")
_TRANSPOSED = Role(Kind.TRANSPOSED, ("input",), "weight", "bias", axis=1)
_LAYOUT = Role(Kind.LAYOUT)

ROLES: Mapping[Any, Role] = MappingProxyType(
    {
        aten.conv1d.default: _CONVOLUTION,
        aten.conv2d.default: _CONVOLUTION,
        aten.conv3d.default: _CONVOLUTION,
        aten.conv1d.padding: _CONVOLUTION,
        aten.conv2d.padding: _CONVOLUTION,
        aten.conv3d.padding: _CONVOLUTION,
        aten.convolution.default: _CONVOLUTION,
        aten.conv_transpose1d.default: _TRANSPOSED,
        aten.conv_transpose2d.input: _TRANSPOSED,
        aten.conv_transpose3d.input: _TRANSPOSED,
        aten.linear.default: Role(Kind.LINEAR, ("input",), "weight", "bias"),
        aten.addmm.default: Role(Kind.LINEAR, ("mat1",), "mat2", "self", axis=1),
        aten.mm.default: Role(Kind.LINEAR, ("self",), "mat2", axis=1),
        aten.matmul.default: Role(Kind.LINEAR, ("self",), "other", axis=-1),
        aten.bmm.default: Role(Kind.MATMUL, ("self", "mat2")),
        aten.scaled_dot_product_attention.default: Role(Kind.ATTENTION, ("query", "key", "value")),
        aten.add.Tensor: Role(Kind.ADD, ("self", "other")),
        aten.mul.Tensor: Role(Kind.MULTIPLY, ("self", "other")),
        aten.cat.default: Role(Kind.CONCATENATE, ("tensors",)),
        aten.avg_pool2d.default: Role(Kind.AVERAGE),
        aten.adaptive_avg_pool2d.default: Role(Kind.GLOBAL_AVERAGE),
        aten.mean.dim: Role(Kind.GLOBAL_AVERAGE),
        aten.relu.default: Role(Kind.RECTIFY),
        aten.relu6.default: Role(Kind.RECTIFY),
        aten.hardtanh.default: Role(Kind.RECTIFY),
        aten.clamp.default: Role(Kind.RECTIFY),
        aten.clamp_min.default: Role(Kind.RECTIFY),
        aten.sigmoid.default: Role(Kind.SIGMOID),
        aten.silu.default: Role(Kind.GATE),
        aten.hardswish.default: Role(Kind.GATE),
        aten.leaky_relu.default: Role(Kind.LEAKY),
        aten.hardsigmoid.default: Role(Kind.HARD_SIGMOID),
        aten.pad.default: Role(Kind.PAD),
        aten.constant_pad_nd.default: Role(Kind.PAD),
        **dict.fromkeys(
            (
                aten.max_pool1d.default,
                aten.max_pool2d.default,
                aten.max_pool3d.default,
                aten.view.default,
                aten.reshape.default,
                aten._unsafe_view.default,
                aten.flatten.using_ints,
                aten.unflatten.int,
                aten.permute.default,
                aten.transpose.int,
                aten.movedim.int,
                aten.slice.Tensor,
                aten.select.int,
                aten.unsqueeze.default,
                aten.squeeze.default,
                aten.squeeze.dim,
                aten.squeeze.dims,
                aten.expand.default,
                aten.split.Tensor,
                aten.split_with_sizes.default,
                aten.chunk.default,
                aten.contiguous.default,
                aten.clone.default,
                aten.alias.default,
                aten.pixel_shuffle.default,
                aten.channel_shuffle.default,
                aten.index_select.default,
            ),
            _LAYOUT,
        ),
        aten.upsample_nearest2d.vec: Role(Kind.LAYOUT, ("input",)),
        aten.upsample_bilinear2d.vec: Role(Kind.SMOOTH, ("input",)),
        **dict.fromkeys(
            (
                aten.batch_norm.default,
                aten.layer_norm.default,
                aten.group_norm.default,
                aten.instance_norm.default,
                aten.rms_norm.default,
            ),
            Role(Kind.NORM, ("input",)),
        ),
        **dict.fromkeys(
            (
                aten.softmax.int,
                aten._softmax.default,
                aten.gelu.default,
                aten.tanh.default,
                aten.softplus.default,
                aten.mish.default,
                aten.elu.default,
                aten.exp.default,
                aten.rsqrt.default,
                aten.pow.Tensor_Scalar,
                aten.sub.Tensor,
                aten.div.Tensor,
                aten.neg.default,
            ),
            Role(Kind.SMOOTH),
        ),
        aten.embedding.default: Role(Kind.LOOKUP, ("indices",), "weight"),
    }
)

GATES: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {aten.silu.default: aten.sigmoid.default, aten.hardswish.default: aten.hardsigmoid.default}
)
"""A self-gated activation is its input times this function of it."""


def role(node: fx.Node) -> Role | None:
    """Return the node's row, None for an operator without one and for what is no operator."""
    return ROLES.get(node.target) if node.op == "call_function" else None


def activations(node: fx.Node, row: Role) -> list[fx.Node]:
    """Return the activation operands of a node, in order; numbers among them are left out."""
    found: list[fx.Node] = []
    for name in row.activations:
        operand = walk.argument(node, name)
        found.extend(
            x for x in (operand if isinstance(operand, list | tuple) else [operand]) if isinstance(x, fx.Node)
        )
    return found


def rectifier_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Return the bounds a rectifier clamps to, None if they are not numbers."""
    if node.target is aten.relu.default:
        return 0.0, float("inf")
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    hardtanh = node.target is aten.hardtanh.default
    low = walk.argument(node, "min_val" if hardtanh else "min")
    high = walk.argument(node, "max_val" if hardtanh else "max")
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    return (float("-inf") if low is None else float(low)), (float("inf") if high is None else float(high))
