"""Fold a scale and shift per channel into the linear or convolution beside it.

    mul(linear(x, W, b), s)              =>   linear(x, s * W, s * b)        LayerScale, attention's scale
    add(conv(x, W), t)                   =>   conv(x, W, t)
    conv(batch_norm(x), W, b)            =>   conv(x, W * s, b + W t)
    linear(sub(x, m), W, b)              =>   linear(x, W, b - W m)

with the algebra of `fxcompress.numerics.kernel_blocks`. First into the operator before (a batch norm there is
`FuseBatchNorm`'s), then, from the last to the first, into the one operator behind. Operators between the two
may move the channel axis or flatten others.

A shift does not go into a convolution that pads: its zeros are not shifted. Nor, for the same reason, into a
transposed one of more than one tap. A hand-written norm keeps its scale, which runtimes compute with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import erase, replace_uses
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, source, value
from fxcompress.numerics import kernel_blocks
from fxcompress.numerics.folding import ChannelAffine, fold_bias
from fxcompress.passes import affine_sites as sites
from fxcompress.passes.channel_maps import ChannelMap, channel_map, is_normalised
from fxcompress.passes.contract import Decline, Outcome, outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class FuseAffine:
    """Fold per-channel scales and shifts into the neighbouring linear or convolution."""

    name: ClassVar[str] = "fuse-affine"

    def run(self, program: Program) -> Outcome:
        """Return a program without the scales and shifts that could be folded."""
        edited = program.copy()
        changed: list[str] = []
        reasons: dict[Node, list[str]] = {}
        for node in list(edited.graph.nodes):
            found = channel_map(edited, node)
            if found is not None and node.target != aten.batch_norm.default:
                _try(edited, found, _before(edited, found), changed, reasons, into_outputs=True)
        for node in reversed(list(edited.graph.nodes)):
            found = channel_map(edited, node)
            if found is not None:
                _try(edited, found, behind(edited, found), changed, reasons, into_outputs=False)
        declined = tuple(
            Decline(node.name, "; ".join(dict.fromkeys(said)), source(node)) for node, said in reasons.items()
        )
        return outcome(program, edited, changed, declined)


def _try(
    program: Program,
    found: ChannelMap,
    site: Node | str,
    changed: list[str],
    reasons: dict[Node, list[str]],
    *,
    into_outputs: bool,
) -> None:
    """Fold a map into a site, or keep the reason why there is none."""
    if isinstance(site, str):
        reasons.setdefault(found.node, []).append(site)
        return
    reasons.pop(found.node, None)
    changed.append(f"{found.node.name} into {site.name}")
    fold = fold_into_outputs if into_outputs else fold_into_inputs
    fold(program, site, found.vectors(channels_of(program, site, outputs=into_outputs)))
    replace_uses(found.node, found.x)
    erase(found.node)


def fold_into_outputs(program: Program, site: Node, affine: ChannelAffine) -> None:
    """Let an operator compute ``scale * y + shift`` of what it computes."""
    weight, bias = sites.weight_of(program, site), sites.bias_of(program, site)
    scaled = sites.scaler(site)(weight, affine.scale)
    shifts = bias is not None or bool(affine.shift.any())
    sites.store(program, site, scaled, fold_bias(bias, affine, weight.dtype) if shifts else None)


def fold_into_inputs(program: Program, site: Node, affine: ChannelAffine) -> None:
    """Let an operator compute of x what it computes of ``scale * x + shift``."""
    weight, layout = sites.weight_of(program, site), sites.layout_of(site)
    blocks = kernel_blocks.to_blocks(weight, sites.groups_of(site), layout)
    scaled = kernel_blocks.from_blocks(kernel_blocks.scale_inputs(blocks, affine.scale), weight.dtype, layout)
    bias = None
    if affine.shift.any():
        old = sites.bias_of(program, site)
        added = kernel_blocks.pass_shift(blocks, affine.shift)
        bias = (added if old is None else old.double() + added).to(weight.dtype)
    sites.store(program, site, scaled, bias)


def channels_of(program: Program, site: Node, *, outputs: bool) -> int:
    """How many output (else input) channels an operator has."""
    blocks = kernel_blocks.to_blocks(
        sites.weight_of(program, site), sites.groups_of(site), sites.layout_of(site)
    )
    return int(blocks.shape[0] * blocks.shape[1 if outputs else 2])


def _before(program: Program, found: ChannelMap) -> Node | str:
    """The operator that makes what a map reads, through layouts; or why it cannot take the map over."""
    node, reader, axis = found.x, found.node, found.axis
    while (others := sites.others_of(node, reader)) is None:
        if node.target not in sites.LAYOUTS:
            if not sites.is_affine(node):
                return f"follows {_called(node)}, which has no weight"
            return _obstacle(program, node, found, axis, value(node).dim()) or node
        if axis is not None and (axis := sites.carried(node, axis)) is None:
            return f"{node.name} mixes the channels with another axis"
        node, reader = sites.required(node), node
    return others


def behind(program: Program, found: ChannelMap) -> Node | str:
    """The one operator that reads what a map makes, through layouts; or why it cannot take the map over."""
    if is_normalised(program, found):
        return "scales a norm, which runtimes compute in one operator"
    node, axis = found.node, found.axis
    while len(node.users) == 1:
        made, node = node, next(iter(node.users))
        if node.target not in sites.LAYOUTS:
            if not sites.is_affine(node):
                return f"is read by {_called(node)}, which has no weight"
            reason = _obstacle(program, node, found, axis, value(made).dim())
            if reason is None and found.shifts and not takes_shift(node):
                reason = f"{node.name} pads with zeros, which are not shifted"
            return reason or node
        if axis is not None and (axis := sites.moved(node, axis)) is None:
            return f"{node.name} mixes the channels with another axis"
    return f"{node.name} has several consumers"


def takes_shift(site: Node) -> bool:
    """Whether every output of an operator sees every tap of the kernel on the input proper."""
    padding = sites.padding_of(site)
    if padding is None or any(padding):
        return False
    if not sites.is_mirrored(site):
        return True
    kernel = value(sites.weight_node(site)).shape[2:]
    rank = len(kernel)
    strides = sites.every_axis(argument(site, "stride"), rank)
    extra = sites.every_axis(argument(site, "output_padding"), rank)
    return all(size == 1 for size in (*kernel, *strides)) and not any(extra)


def _obstacle(program: Program, site: Node, found: ChannelMap, axis: int | None, rank: int) -> str | None:
    """Why an operator whose input or output of ``rank`` axes meets the map cannot take it over."""
    channels = sites.channel_axis(site, rank)
    if axis is not None and axis != channels:
        return f"scales axis {axis} of {site.name}, whose channels are axis {channels}"
    if value(site).dtype != value(found.node).dtype:
        return f"{site.name} computes in another dtype"
    return sites.weight_obstacle(program, site)


def _called(node: Node) -> str:
    return str(node.target) if node.op == "call_function" else f"the {node.op} {node.name}"
