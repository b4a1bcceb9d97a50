"""How much noise int8 adds to what reads a tensor, and which scales of its channels make it least.

A tensor has one scale for all channels, as wide as its widest channel: narrow channels are left few of the
256 levels. Dividing channel i by `s_i > 0` where it is made and multiplying the readers' weights by `s_i`
changes no output, but shifts the difficulty from activations to weights, whose scale is per *output*
channel.

Scales are `a^p / c^(1 - p)` of the channel's largest activation `a` and its readers' largest weight `c`, for
a few `p`. With p = 1/2 this is what equal ranges ask for in Nagel et al., "Data-free quantization through
weight equalization and bias correction" (2019), measured on activations as in Xiao et al., "SmoothQuant"
(2022), whose formula it is. Which `p` is best, or none, follows from the noise that rounding adds:

    (tensor's step)^2 / 12 * sum_i w_oi^2  +  (step of output o's weights)^2 / 12 * sum_i E[x_i^2]

as a share of output o's power, averaged over outputs: what later layers make of an output does not matter to
it. Scales are powers of two: floats do not round when they are multiplied by them, so the program computes
what it did to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POWERS = (0.35, 0.5, 0.65, 0.8, 1.0)
"""The shares of the difficulty that are tried to be moved into weights."""

LEVELS, LIMIT = 255, 127
"""Steps of a uint8 range, and the largest int8 weight."""

FARTHEST = 24
"""Scales lie between 2^-24 and 2^24 of their middle: what is farther off is as good as dead."""


class ChannelStatistics:
    """The smallest, the largest and the mean squared value of every channel of a stream."""

    def __init__(self) -> None:
        self.count = 0
        self.low = self.high = self.sums = self.squares = torch.zeros(0, dtype=torch.float64)

    def update(self, values: Tensor, axis: int) -> None:
        """Take in one batch, whose channels lie along `axis`; an empty one changes nothing."""
        if values.numel() == 0:
            return
        rows = values.detach().movedim(axis, 0).flatten(1)
        low, high = (bound.double() for bound in torch.aminmax(rows, dim=1))
        sums, squares = rows.sum(1, dtype=torch.float64), rows.square().sum(1, dtype=torch.float64)
        if self.count == 0:
            self.low, self.high, self.sums, self.squares = low, high, sums, squares
        else:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.sums, self.squares = self.sums + sums, self.squares + squares
        self.count += rows.shape[1]

    @property
    def power(self) -> Tensor:
        """The mean of the squares, `[channels]`."""
        return self.power_without(0.0)

    def power_without(self, constant: Tensor | float) -> Tensor:
        """The mean of the squares once a constant per channel is taken off."""
        count = max(self.count, 1)
        return (self.squares - 2.0 * constant * self.sums) / count + constant * constant

    @property
    def largest(self) -> Tensor:
        """The largest magnitude, `[channels]`."""
        return torch.maximum(self.low.abs(), self.high.abs())


@dataclass(frozen=True)
class Reader:
    """A layer that reads the tensor.

    Args:
        weight: `[outputs, inputs, taps]`.
        channel: `[outputs, inputs]`, which channel of the tensor each input is; groups read different ones.
        read: statistics of what it reads.
        power: `[outputs]`, the mean square of each output.
    """

    weight: Tensor
    channel: Tensor
    read: ChannelStatistics
    power: Tensor

    def largest(self, channels: int) -> Tensor:
        """The largest weight that reads each channel, relative to the root of its output's power."""
        relative = self.weight.abs().amax(2) / _positive(self.power).sqrt()[:, None]
        found = torch.zeros(channels, dtype=torch.float64)
        return found.scatter_reduce(0, self.channel.reshape(-1), relative.reshape(-1), "amax")

    def noise(self, scales: Tensor, constant: Tensor | float = 0.0) -> float:
        """The noise that int8 adds with the channels divided by `scales`, as a mean share of the outputs'.

        `constant` is taken off the channels first.
        """
        low, high = ((self.read.low - constant) / scales).min(), ((self.read.high - constant) / scales).max()
        step = (high.clamp(min=0.0) - low.clamp(max=0.0)) / LEVELS
        weight = self.weight * scales[self.channel][:, :, None]
        from_tensor = step.square() / 12 * weight.square().sum((1, 2))
        inputs = (self.read.power_without(constant) / scales.square())[self.channel].sum(1) * weight.shape[2]
        from_weight = (weight.abs().amax((1, 2)) / LIMIT).square() / 12 * inputs
        alive = self.power > 0
        return (
            float(((from_tensor + from_weight)[alive] / self.power[alive]).mean())
            if bool(alive.any())
            else 0.0
        )


def best_scales(readers: Sequence[Reader], powers: Sequence[float] = POWERS) -> tuple[Tensor, float, float]:
    """The scales of the least noise over all readers, with the noise of none and with them.

    Powers of two, `[channels]` in float64; ones where nothing is better. Channels without values keep theirs.
    """
    channels = len(readers[0].read.low)
    best = torch.ones(channels, dtype=torch.float64)
    before = least = sum(reader.noise(best) for reader in readers)
    activation = torch.stack([reader.read.largest for reader in readers]).amax(0)
    weight = torch.stack([reader.largest(channels) for reader in readers]).amax(0)
    alive = (activation > 0) & (weight > 0)
    if not bool(alive.any()):
        return best, before, before
    for power in powers:
        logs = power * activation[alive].log2() - (1.0 - power) * weight[alive].log2()
        scales = torch.ones_like(best)
        scales[alive] = torch.exp2((logs - logs.median()).round().clamp(-FARTHEST, FARTHEST))
        found = sum(reader.noise(scales) for reader in readers)
        if found < least:
            best, least = scales, found
    return best, before, least


def _positive(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(torch.float64).tiny)
