"""Follow a tensor's channels forward to the layers that multiply them with stored weights.

Between the two only what commutes with a positive factor per channel: rectifiers (`relu`, `leaky_relu`),
pooling, layout that keeps the channels one axis. Anything else, a sum, a clamp, a smooth function, an output
of the program, ends the search with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph.edit import set_tensor
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, value
from fxcompress.passes.affine_sites import (
    AFFINES,
    LAYOUTS,
    channel_axis,
    groups_of,
    is_affine,
    is_mirrored,
    layout_of,
    moved,
    required,
    weight_node,
    weight_obstacle,
    weight_of,
)

aten = torch.ops.aten

HOMOGENEOUS: Mapping[Any, int] = MappingProxyType(
    {
        aten.relu.default: 0,
        aten.leaky_relu.default: 0,
        aten.dropout.default: 0,
        aten.max_pool1d.default: 1,
        aten.max_pool2d.default: 2,
        aten.max_pool3d.default: 3,
        aten.avg_pool1d.default: 1,
        aten.avg_pool2d.default: 2,
        aten.avg_pool3d.default: 3,
        aten.adaptive_avg_pool1d.default: 1,
        aten.adaptive_avg_pool2d.default: 2,
        aten.adaptive_max_pool2d.default: 2,
    }
)
"""`f(s * x) = s * f(x)` for every positive factor per channel, where the channels are none of the last so
many axes, which are pooled.
"""

CLAMPS = frozenset({aten.relu6.default, aten.hardtanh.default, aten.clamp.default})


@dataclass(frozen=True)
class Reading:
    """A layer and the tensor it reads, whose channels lie along `axis`."""

    layer: Node
    source: Node
    axis: int


def readings(program: Program, made: Node, axis: int) -> list[Reading] | str:
    """Every layer that reads the channels of `made`, or why they cannot be scaled."""
    found: list[Reading] = []
    ends = [(made, axis)]
    while ends:
        node, dim = ends.pop(0)
        if not node.users:
            return f"nothing reads {node.name}"
        for user in sorted(node.users):
            if is_affine(user):
                reason = _layer_obstacle(program, user, node, dim)
                if reason is not None:
                    return reason
                found.append(Reading(user, node, dim))
                continue
            after = _passed(user, node, dim)
            if isinstance(after, str):
                return after
            ends.append((user, after))
    return found


def _passed(user: Node, node: Node, dim: int) -> int | str:
    """The axis of the channels after an operator that a factor may pass, or why it may not."""
    if user.op == "output":
        return f"{node.name} is an output"
    if user.target in HOMOGENEOUS:
        pooled = dim >= value(node).dim() - HOMOGENEOUS[user.target]
        return f"{user.name} pools over the channels" if pooled else dim
    if user.target is aten.mean.dim and argument(user, "dim") is not None:
        gone = sorted(each % value(node).dim() for each in argument(user, "dim"))
        if dim not in gone:
            return dim if argument(user, "keepdim", False) else dim - sum(each < dim for each in gone)
    if user.target in LAYOUTS:
        after = moved(user, dim)
        return f"{user.name} mixes the channels with another axis" if after is None else after
    if user.target in CLAMPS:
        return f"{user.name} clamps all channels at one number: scaled ones would be clamped elsewhere"
    return f"{user.name} ({user.target}) does not pass factors on"


def _layer_obstacle(program: Program, layer: Node, source: Node, dim: int) -> str | None:
    """Why a layer's weight cannot take the factors."""
    if required(layer, AFFINES[layer.target].x) is not source:
        return f"{layer.name} reads {source.name} as a weight"
    if is_mirrored(layer):
        return f"{layer.name} is a transposed convolution"
    if channel_axis(layer, value(source).dim()) != dim:
        return f"{layer.name} sums over another axis than the channels"
    return weight_obstacle(program, layer)


def read_matrix(program: Program, layer: Node) -> tuple[Tensor, Tensor]:
    """A layer's weight as `[outputs, inputs, taps]` in float64, and the channel that each input is."""
    weight = weight_of(program, layer).double()
    matrix = weight.mT[:, :, None] if layout_of(layer) == "columns" else weight.reshape(*weight.shape[:2], -1)
    outputs, inputs, _ = matrix.shape
    group = torch.arange(outputs) // (outputs // groups_of(layer))
    return matrix, group[:, None] * inputs + torch.arange(inputs)


def scale_inputs(program: Program, layer: Node, scales: Tensor) -> None:
    """Multiply what reads channel i by `scales[i]`."""
    weight = weight_of(program, layer)
    matrix, channel = read_matrix(program, layer)
    scaled = matrix * scales[channel][:, :, None]
    whole = scaled[:, :, 0].mT if layout_of(layer) == "columns" else scaled.reshape(weight.shape)
    set_tensor(program, str(weight_node(layer).target), whole.to(weight.dtype).contiguous())
