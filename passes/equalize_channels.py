"""Balance the channels between a layer and those that read it, without changing what they compute.

    conv2(relu(conv1(x, W1, b1)), W2)  =>  conv2(relu(conv1(x, W1 / s, b1 / s)), W2 * s)

with one positive `s` per channel, a power of two, so that the program computes the same bits. Where every
value of a channel lies above some `c > 0` on the calibration data, that constant goes on as a bias:

    relu(y) * W2 + b2  =>  relu(y - c) * W2 + (b2 + W2 c)

which is the same wherever `y >= c`; only half of what was seen is taken, and only past layers without
padding. A pair is changed where the noise predicted for int8 falls (`numerics.equalization`): depthwise
layers, whose channels can be scaled freely, gain most.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019), sections 4.1
and 4.1.3, with ranges measured on data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis.channel_ranges import channel_statistics
from fxcompress.graph.edit import reinfer
from fxcompress.graph.program import Program
from fxcompress.graph.walk import source, value
from fxcompress.numerics.equalization import ChannelStatistics, Reader, best_scales
from fxcompress.passes.affine_sites import (
    bias_of,
    channel_axis,
    is_affine,
    padding_of,
    scaler,
    store,
    weight_obstacle,
    weight_of,
)
from fxcompress.passes.channel_readers import Reading, read_matrix, readings, scale_inputs
from fxcompress.passes.contract import Decline, Outcome

aten = torch.ops.aten

GAIN = 0.9
"""A pair is changed where the predicted noise falls below this share of what it was."""

ABSORBED = 0.5
"""The share of a channel's smallest value that moves into the next bias."""


@dataclass(frozen=True)
class EqualizeChannels:
    """Scale channels where that makes int8 less noisy.

    Args:
        batches: calibration data that can be read more than once; labels are ignored.
        absorb: whether constants move into the next bias.
    """

    batches: Iterable[Any] = field(repr=False)
    absorb: bool = True
    name: ClassVar[str] = "equalize-channels"

    def run(self, program: Program) -> Outcome:
        """Return the balanced program; raises InputError for data that gives no numbers."""
        sites: dict[Node, list[Reading]] = {}
        declined: list[Decline] = []
        edited = program.copy()
        for node in edited.graph.nodes:
            if is_affine(node):
                found = weight_obstacle(edited, node) or readings(edited, node, made_axis(node))
                if isinstance(found, str):
                    declined.append(Decline(node.name, found, source(node)))
                else:
                    sites[node] = found
        seen = statistics_of(edited, self.batches, sites.values()) if sites else {}
        changed = []
        for node, found in sites.items():
            line = self._site(edited, node, found, seen)
            if line is None:
                declined.append(Decline(node.name, NO_GAIN, source(node)))
            else:
                changed.append(line)
        if not changed:
            return Outcome(program, (), tuple(declined))
        reinfer(edited)
        return Outcome(edited, tuple(changed), tuple(declined))

    def _site(
        self, program: Program, node: Node, found: list[Reading], seen: dict[Node, ChannelStatistics]
    ) -> str | None:
        """Balance one layer with its readers in place; what it gains, None where it stays."""
        if any(seen[part].count == 0 for reading in found for part in (reading.source, reading.layer)):
            return None
        readers = readers_of(program, found, seen)
        scales, before, after = best_scales(readers)
        if not after < GAIN * before:
            scales, after = torch.ones_like(scales), before
        constant = self._constant(program, node, found, seen)
        shifted = sum(reader.noise(scales, constant) for reader in readers)
        if shifted < GAIN * after:
            after = shifted
        else:
            constant = torch.zeros_like(constant)
        if not after < before:
            return None
        _absorb(program, node, found, constant)
        weight, bias = weight_of(program, node), bias_of(program, node)
        inverse = 1.0 / scales
        divided = None if bias is None else (bias.double() * inverse).to(bias.dtype)
        store(program, node, scaler(node)(weight, inverse), divided)
        for reading in found:
            scale_inputs(program, reading.layer, scales)
        names = ", ".join(reading.layer.name for reading in found)
        moved = f", {int((constant > 0).sum())} constants moved on" if bool(constant.any()) else ""
        spread = float(scales.max() / scales.min())
        return (
            f"{node.name} with {names}: scales {spread:.3g} apart, noise {before:.2g} to {after:.2g}{moved}"
        )

    def _constant(
        self, program: Program, node: Node, found: list[Reading], seen: dict[Node, ChannelStatistics]
    ) -> Tensor:
        """What every value of each channel exceeds and may move on; zeros where it may not."""
        nothing = torch.zeros_like(seen[found[0].source].low)
        rectified = len(node.users) == 1 and next(iter(node.users)).target is aten.relu.default
        if not (self.absorb and rectified and bias_of(program, node) is not None):
            return nothing
        for reading in found:
            direct = reading.source in node.users
            padding = padding_of(reading.layer)
            if not direct or padding is None or any(padding) or bias_of(program, reading.layer) is None:
                return nothing
        low = torch.stack([seen[reading.source].low for reading in found]).amin(0)
        return (low * ABSORBED).clamp(min=0.0)


NO_GAIN = "int8 is predicted to be no less noisy with other scales"


def made_axis(node: Node) -> int:
    """The axis of the channels that a layer makes."""
    return channel_axis(node, value(node).dim())


def statistics_of(
    program: Program, batches: Iterable[Any], sites: Iterable[list[Reading]]
) -> dict[Node, ChannelStatistics]:
    """Statistics of everything that is read, and of what the readers make."""
    axes: dict[Node, int] = {}
    for reading in (one for found in sites for one in found):
        axes[reading.source] = reading.axis
        axes[reading.layer] = made_axis(reading.layer)
    return channel_statistics(program, batches, axes)


def readers_of(program: Program, found: list[Reading], seen: dict[Node, ChannelStatistics]) -> list[Reader]:
    """The layers that read a tensor, as the prediction of noise wants them."""
    return [
        Reader(*read_matrix(program, one.layer), seen[one.source], seen[one.layer].power) for one in found
    ]


def _absorb(program: Program, node: Node, found: list[Reading], constant: Tensor) -> None:
    """Take a constant per channel out of a layer's bias, and add what it is worth to its readers'."""
    if not bool(constant.any()):
        return
    bias = bias_of(program, node)
    assert bias is not None
    store(program, node, None, (bias.double() - constant).to(bias.dtype))
    for reading in found:
        matrix, channel = read_matrix(program, reading.layer)
        worth = (matrix.sum(2) * constant[channel]).sum(1)
        next_bias = bias_of(program, reading.layer)
        assert next_bias is not None
        store(program, reading.layer, None, (next_bias.double() + worth).to(next_bias.dtype))
