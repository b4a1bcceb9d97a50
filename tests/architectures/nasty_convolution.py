"""Convolutions, their groups, and what is done with channels between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.architectures.nasty import Ideas

CONVOLUTION = Ideas()
idea = CONVOLUTION.idea

IMAGE = (3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


@idea(
    lambda: {"stem": conv(3, 12), "grouped": conv(12, 8, groups=4), "head": conv(8, 3, 1)},
    IMAGE,
    sizes=(2, 3, 4),
)
def grouped(m: Any, x: Tensor) -> Tensor:
    """Four groups of three channels in, two out: groups and widths are three factors."""
    return m.head(F.relu(m.grouped(F.relu(m.stem(x)))))


@idea(
    lambda: {"stem": conv(3, 6), "deep": conv(6, 12, groups=6), "head": conv(12, 3, 1)}, IMAGE, sizes=(2, 6)
)
def depthwise_multiplier(m: Any, x: Tensor) -> Tensor:
    """Depthwise with two outputs per channel."""
    return m.head(F.relu(m.deep(F.relu(m.stem(x)))))


@idea(
    lambda: {"stem": conv(3, 12), "up": nn.ConvTranspose2d(12, 8, 2, 2, groups=2), "head": conv(8, 3, 1)},
    IMAGE,
    sizes=(2, 4, 6),
)
def transposed_grouped(m: Any, x: Tensor) -> Tensor:
    """The weight is stored the other way round, and so are its groups."""
    return m.head(F.relu(m.up(F.relu(m.stem(x)))))


@idea(
    lambda: {"stem": nn.Conv1d(3, 8, 3), "norm": nn.BatchNorm1d(8), "head": nn.Linear(8, 3)},
    (3, 9),
    sizes=(8,),
)
def one_dimension(m: Any, x: Tensor) -> Tensor:
    """A 1-d convolution with batch norm, pooled to a vector."""
    return m.head(F.relu(m.norm(m.stem(x))).mean(-1))


@idea(
    lambda: {
        "stem": nn.Conv3d(2, 8, 3, padding=1),
        "down": nn.Conv3d(8, 6, 2, 2),
        "head": nn.Linear(6 * 8, 3),
    },
    (2, 4, 4, 4),
    sizes=(6, 8),
)
def three_dimensions(m: Any, x: Tensor) -> Tensor:
    """A 3-d convolution, pooled and flattened."""
    return m.head(F.max_pool3d(F.relu(m.down(F.relu(m.stem(x)))), 1).flatten(1))


@idea(
    lambda: {"stem": conv(3, 6), "wide": conv(6, 10, stride=2), "head": conv(10, 3, 1)},
    IMAGE,
    sizes=(2, 2, 6),
)
def zero_pad_shortcut(m: Any, x: Tensor) -> Tensor:
    """A shortcut without parameters: every other pixel, zero channels around."""
    x = F.relu(m.stem(x))
    return m.head(m.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


@idea(
    lambda: {
        "stem": conv(3, 12),
        "one": conv(6, 6, 1),
        "deep": conv(6, 6, groups=6),
        "two": conv(6, 6, 1),
        "head": conv(12, 3, 1),
    },
    IMAGE,
    sizes=(6,),
)
def shuffled_halves(m: Any, x: Tensor) -> Tensor:
    """ShuffleNet v2: half passes by, both halves are interleaved and cut in half again."""
    x = F.relu(m.stem(x))
    for _ in range(2):
        left, right = x.chunk(2, 1)
        x = torch.cat([left, F.relu(m.two(m.deep(F.relu(m.one(right)))))], 1)
        x = x.view(x.shape[0], 2, 6, 8, 8).transpose(1, 2).flatten(1, 2)
    return m.head(x)


@idea(
    lambda: {
        "stem": conv(3, 12),
        "one": conv(12, 12, groups=3),
        "two": conv(12, 12, groups=3),
        "head": conv(12, 3, 1),
        "shuffle": nn.ChannelShuffle(3),
    },
    IMAGE,
    sizes=(4, 4),
)
def channel_shuffle_module(m: Any, x: Tensor) -> Tensor:
    """Grouped convolutions on both sides of a shuffle."""
    return m.head(F.relu(m.two(m.shuffle(F.relu(m.one(F.relu(m.stem(x))))))))


@idea(
    lambda: {"stem": conv(3, 8), "down": nn.Linear(8, 4), "up": nn.Linear(4, 8), "head": conv(8, 3, 1)},
    IMAGE,
    sizes=(4, 8),
)
def squeeze_excitation(m: Any, x: Tensor) -> Tensor:
    """A gate per channel from the mean over space."""
    x = F.relu(m.stem(x))
    gate = m.up(F.relu(m.down(x.mean((2, 3))))).sigmoid()
    return m.head(x * gate[:, :, None, None])


@idea(
    lambda: {
        "stem": conv(3, 8),
        "over": nn.Conv1d(1, 1, 3, padding=1, bias=False),
        "up": conv(8, 24, 1),
        "head": conv(24, 3),
    },
    IMAGE,
    sizes=(24,),
)
def efficient_channel_attention(m: Any, x: Tensor) -> Tensor:
    """A convolution that slides over channels: their order matters, so they stay; those after them go."""
    x = F.relu(m.stem(x))
    gate = m.over(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
    return m.head(F.relu(m.up(x * gate)))


@idea(
    lambda: {
        "stem": conv(3, 8),
        "deep": conv(8, 8, 3, groups=8),
        "norm": nn.LayerNorm(8),
        "up": nn.Linear(8, 12),
        "down": nn.Linear(12, 8),
        "scale": nn.Parameter(torch.full((8,), 1e-6)),
        "head": conv(8, 3, 1),
    },
    IMAGE,
    sizes=(8, 12),
)
def layer_scale(m: Any, x: Tensor) -> Tensor:
    """ConvNeXt: depthwise, channels last, and a gain per channel that starts at nothing."""
    x = m.stem(x)
    y = m.norm(m.deep(x).permute(0, 2, 3, 1))
    y = m.down(F.gelu(m.up(y))) * m.scale
    return m.head(x + y.permute(0, 3, 1, 2))


@idea(
    lambda: {
        "stem": parametrizations.weight_norm(conv(3, 8)),
        "mid": nn.utils.weight_norm(conv(8, 6)),
        "head": conv(6, 3, 1),
    },
    IMAGE,
    sizes=(6, 8),
)
def weight_norm(m: Any, x: Tensor) -> Tensor:
    """Direction and length are stored, in the new form and in the old."""
    return m.head(F.relu(m.mid(F.relu(m.stem(x)))))


@idea(
    lambda: {
        "stem": parametrizations.spectral_norm(conv(3, 8)),
        "mid": parametrizations.spectral_norm(conv(8, 6)),
        "head": conv(6, 3, 1),
    },
    IMAGE,
    sizes=(6, 8),
)
def spectral_norm(m: Any, x: Tensor) -> Tensor:
    """Every weight is divided by its largest singular value, estimated from stored vectors."""
    return m.head(F.relu(m.mid(F.relu(m.stem(x)))))


class Standardised(nn.Module):
    """Weights of mean zero and deviation one per output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return (weight - mean) / (deviation + 1e-5)


def standardised(layer: nn.Conv2d) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "weight", Standardised())
    return layer


@idea(
    lambda: {
        "stem": conv(3, 8),
        "mid": standardised(conv(8, 6)),
        "norm": nn.GroupNorm(3, 6),
        "head": conv(6, 3, 1),
    },
    IMAGE,
    sizes=(2, 3, 8),
)
def standardised_weights(m: Any, x: Tensor) -> Tensor:
    """A parametrization of the user's own."""
    return m.head(F.relu(m.norm(m.mid(F.relu(m.stem(x))))))


@idea(
    lambda: {
        "stem": conv(3, 6),
        "a": conv(6, 4),
        "b": conv(10, 4),
        "norm": nn.BatchNorm2d(14),
        "head": conv(14, 3, 1),
    },
    IMAGE,
    sizes=(4, 4, 6),
)
def dense_block(m: Any, x: Tensor) -> Tensor:
    """DenseNet: every layer reads all before it."""
    x = F.relu(m.stem(x))
    y = F.relu(m.a(x))
    z = F.relu(m.b(torch.cat([x, y], 1)))
    return m.head(m.norm(torch.cat([x, y, z], 1)))


@idea(
    lambda: {
        "stem": conv(3, 8),
        "a": conv(8, 4, 1),
        "b": conv(8, 6, 3),
        "c": conv(8, 2, 5),
        "norm": nn.BatchNorm2d(20),
        "head": conv(20, 3, 1),
    },
    IMAGE,
    sizes=(2, 4, 6, 8),
)
def inception(m: Any, x: Tensor) -> Tensor:
    """Four branches side by side, one of them the input pooled."""
    x = F.relu(m.stem(x))
    branches = [m.a(x), m.b(x), m.c(x), F.max_pool2d(x, 3, 1, 1)]
    return m.head(F.relu(m.norm(torch.cat(branches, 1))))


@idea(
    lambda: {
        "stem": conv(3, 8),
        "norm": nn.InstanceNorm2d(8, affine=True),
        "mid": conv(8, 6),
        "local": nn.LocalResponseNorm(3),
        "head": conv(6, 3, 1),
    },
    IMAGE,
    sizes=(8,),
)
def instance_and_local_norm(m: Any, x: Tensor) -> Tensor:
    """Statistics over space are per channel; those over neighbouring channels tie their order."""
    return m.head(m.local(F.relu(m.mid(F.relu(m.norm(m.stem(x)))))))


@idea(
    lambda: {
        "stem": conv(3, 12),
        "norm": nn.GroupNorm(4, 12),
        "mid": conv(12, 6),
        "one": nn.GroupNorm(1, 6),
        "head": conv(6, 3, 1),
    },
    IMAGE,
    sizes=(3, 4, 6),
)
def group_norms(m: Any, x: Tensor) -> Tensor:
    """Four groups of three channels, and all channels at once."""
    return m.head(F.relu(m.one(m.mid(F.relu(m.norm(m.stem(x)))))))


@idea(
    lambda: {"stem": conv(3, 6), "weight": nn.Parameter(torch.randn(1, 6, 1, 1)), "head": conv(6, 3, 1)},
    IMAGE,
    sizes=(6,),
)
def slopes_per_channel(m: Any, x: Tensor) -> Tensor:
    """PReLU by hand beside minimum and maximum of two activations."""
    x = m.stem(x)
    return m.head(torch.maximum(x, m.weight * x) + torch.minimum(x, torch.zeros_like(x)))


@idea(lambda: {"stem": conv(3, 8), "mid": conv(4, 6), "head": conv(6, 3, 1)}, IMAGE, sizes=(2, 4, 6))
def maxout(m: Any, x: Tensor) -> Tensor:
    """The larger of two neighbouring channels."""
    x = m.stem(x).unflatten(1, (4, 2)).amax(2)
    return m.head(F.relu(m.mid(x)))
