"""Merge two linear operators in a row into one, where that takes fewer multiply-accumulates.

    linear(linear(x, V, b), W, c)             =>   linear(x, W V, W b + c)
    conv1x1(conv3x3(x, V, b), W, c)           =>   conv3x3(x, W V, W b + c)
    conv3x3(conv1x1(x, V), W, c, padding=1)   =>   conv3x3(x, W V, c, padding=1)        without b

A factorised linear (wide, narrow, wide) takes fewer as it is and is declined with both counts. Of two
convolutions one must have one tap; a padded second one reads zeros where the first would have made its bias,
so then there must be none. Grouped and depthwise convolutions are declined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph.edit import erase, set_arg, set_argument
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, hint_shape, source, value
from fxcompress.numerics import kernel_blocks
from fxcompress.passes import affine_sites as sites
from fxcompress.passes.contract import Decline, Outcome, outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeLinears:
    """Merge consecutive linears, or convolutions of which one has one tap, where that is cheaper."""

    name: ClassVar[str] = "merge-linears"

    def run(self, program: Program) -> Outcome:
        """Return a program in which no two linears in a row would be cheaper as one."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for second in list(edited.graph.nodes):
            first = _first(second)
            if first is None:
                continue
            reason = _obstacle(edited, first, second)
            if reason is not None:
                declined.append(Decline(second.name, reason, source(second)))
                continue
            changed.append(f"{first.name} and {second.name}")
            _merge(edited, first, second)
        return outcome(program, edited, changed, declined)


def _first(second: Node) -> Node | None:
    """The operator of the same kind whose output another one reads, if there is one."""
    if not sites.is_affine(second) or sites.is_mirrored(second):
        return None
    first = sites.required(second, sites.AFFINES[second.target].x)
    return first if first.target == second.target and not sites.is_mirrored(first) else None


def _obstacle(program: Program, first: Node, second: Node) -> str | None:
    """Why two operators in a row stay two, or None."""
    for reason in (
        sites.others_of(first, second),
        sites.weight_obstacle(program, first),
        sites.weight_obstacle(program, second),
    ):
        if reason is not None:
            return reason
    if sites.groups_of(first) != 1 or sites.groups_of(second) != 1:
        return f"{first.name} or {second.name} is grouped"
    if value(first).dtype != value(second).dtype:
        return f"{first.name} and {second.name} compute in different dtypes"
    return _geometry(first, second) or _cost(program, first, second)


def _geometry(first: Node, second: Node) -> str | None:
    """Why the taps of two convolutions are not those of one, or None."""
    paddings = sites.padding_of(first), sites.padding_of(second)
    words = [node for node in (first, second) if isinstance(argument(node, "padding"), str)]
    if paddings[0] is None or paddings[1] is None or words:
        return "one of both pads by a word"
    if any(paddings[1]) and sites.bias_node(first) is not None:
        return f"{second.name} pads with zeros, where {first.name} would have a bias"
    if _is_point(second):
        return None if not any(paddings[1]) else f"{second.name} pads around single taps"
    if not _is_point(first):
        return "both kernels have several taps"
    if any(paddings[0]):
        return f"{first.name} pads around single taps"
    if any(step != 1 for step in _every(first, "stride")):
        return f"{first.name} steps over what {second.name} would read"
    return None


def _cost(program: Program, first: Node, second: Node) -> str | None:
    """Both counts, where one operator takes no fewer multiply-accumulates than two."""
    made = _composed(program, first, second)
    apart = _macs(first, value(sites.weight_node(first)).numel())
    apart += _macs(second, value(sites.weight_node(second)).numel())
    merged = _macs(second, made.numel())
    return None if merged < apart else f"one takes {merged} multiply-accumulates, two take {apart}"


def _macs(node: Node, weights: int) -> int:
    """Multiply-accumulates of an operator with so many weights, at the example's sizes."""
    channels = sites.channel_axis(node, value(node).dim())
    positions = math.prod(size for dim, size in enumerate(hint_shape(node)) if dim != channels)
    return positions * int(weights)


def _is_point(node: Node) -> bool:
    return all(int(size) == 1 for size in value(sites.weight_node(node)).shape[2:])


def _every(node: Node, option: str) -> tuple[int, ...]:
    rank = len(sites.padding_of(node) or ())
    return sites.every_axis(argument(node, option, 1), rank)


def _composed(program: Program, first: Node, second: Node) -> Tensor:
    one, two = (
        kernel_blocks.to_blocks(sites.weight_of(program, node), 1, sites.layout_of(node))
        for node in (first, second)
    )
    return kernel_blocks.compose(one, two)


def _merge(program: Program, first: Node, second: Node) -> None:
    """Let the operator with the taps compute both."""
    dtype = sites.weight_of(program, second).dtype
    layout = sites.layout_of(second)
    weight = kernel_blocks.from_blocks(_composed(program, first, second), dtype, layout)
    biases = sites.bias_of(program, first), sites.bias_of(program, second)
    bias = None
    if biases[0] is not None:
        after = kernel_blocks.to_blocks(sites.weight_of(program, second), 1, layout)
        bias = kernel_blocks.pass_shift(after, biases[0].double())
        bias = (bias if biases[1] is None else bias + biases[1].double()).to(dtype)
    row = sites.AFFINES[second.target]
    if row.spatial != 0 and _is_point(second):
        strides = zip(_every(first, "stride"), _every(second, "stride"), strict=True)
        set_argument(second, "stride", [one * other for one, other in strides])
        set_argument(second, "padding", list(sites.padding_of(first) or ()))
        set_argument(second, "dilation", list(_every(first, "dilation")))
    x = sites.required(first, row.x)
    sites.store(program, second, weight, bias)
    set_arg(second, row.x, x)
    erase(first)
