"""MobileNetV3-large, ShuffleNetV2 1.0x and DenseNet-121 of the published shapes. Random weights.

MobileNetV3 has hard-swish and squeeze-excitation, ShuffleNet splits, concatenates and shuffles channels, and
DenseNet concatenates everything that came before: what integer kernels find hard.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOBILE_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
"""Kernel, hidden and outer channels, squeeze-excitation, hard-swish (else ReLU), stride of each block."""


def _round8(channels: float) -> int:
    """The nearest multiple of eight, not below nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def unit(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    last = [] if activation is None else [activation()]
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *last)


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate that two 1x1 convolutions make of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _round8(channels / 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return F.hardsigmoid(self.expand(F.relu(self.reduce(self.pool(x))))) * x


class MobileBlock(nn.Module):
    """1x1 wide, depthwise, gate, 1x1 narrow; a shortcut where the shape stays."""

    def __init__(self, inputs: int, row: tuple[int, int, int, bool, bool, int]) -> None:
        super().__init__()
        kernel, hidden, outputs, gate, swish, stride = row
        activation = nn.Hardswish if swish else nn.ReLU
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(unit(inputs, hidden, 1, activation=activation))
        layers.append(unit(hidden, hidden, kernel, stride, groups=hidden, activation=activation))
        if gate:
            layers.append(SqueezeExcitation(hidden))
        layers.append(unit(hidden, outputs, 1, activation=None))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.layers(x)
        return x + y if self.shortcut else y


class MobileNetV3(nn.Module):
    """The large one: stem, fifteen blocks, a 1x1 convolution to 960, global average pool, two linears."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [unit(3, 16, 3, 2, activation=nn.Hardswish)]
        inputs = 16
        for row in MOBILE_BLOCKS:
            layers.append(MobileBlock(inputs, row))
            inputs = row[2]
        self.features = nn.Sequential(*layers, unit(inputs, 960, 1, activation=nn.Hardswish))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        return self.head(self.pool(self.features(x)).flatten(1))


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    """Channels of the groups interleaved."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """Half of the channels through 1x1, depthwise, 1x1; with a stride, both halves are computed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        first = inputs if stride > 1 else half
        self.left = (
            nn.Sequential(
                unit(inputs, inputs, 3, stride, groups=inputs, activation=None), unit(inputs, half, 1)
            )
            if stride > 1
            else nn.Identity()
        )
        self.right = nn.Sequential(
            unit(first, half, 1),
            unit(half, half, 3, stride, groups=half, activation=None),
            unit(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        left, right = (x, x) if self.stride > 1 else x.chunk(2, 1)
        return shuffle(torch.cat([self.left(left), self.right(right)], 1))


class ShuffleNetV2(nn.Module):
    """The 1.0x one: stem, stages of 4, 8 and 4 units, a 1x1 convolution to 1024, mean, linear."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [unit(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
        inputs = 24
        for repeats, outputs in ((4, 116), (8, 232), (4, 464)):
            for index in range(repeats):
                layers.append(ShuffleUnit(inputs, outputs, 2 if index == 0 else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers, unit(inputs, 1024, 1))
        self.head = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        return self.head(self.features(x).mean((2, 3)))


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3: 32 new channels behind those that came in."""

    def __init__(self, inputs: int, growth: int = 32) -> None:
        super().__init__()
        wide = 4 * growth
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat([x, self.layers(x)], 1)


class DenseNet121(nn.Module):
    """Stem, blocks of 6, 12, 24 and 16 layers with halving transitions, global average pool, linear."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [*unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for block, depth in enumerate((6, 12, 24, 16)):
            if block:
                layers += [nn.BatchNorm2d(channels), nn.ReLU()]
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(depth):
                layers.append(DenseLayer(channels))
                channels += 32
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        return self.head(self.pool(self.features(x)).flatten(1))
