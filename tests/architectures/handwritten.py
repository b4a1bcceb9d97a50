"""Convolutional networks written by hand, each with its own way of coupling channels.

All take images (batch, 3, 32, 32) and return (batch, 10) logits; the U-Net returns (batch, 5, 32, 32).
Channels are multiples of 16 so that width rules have something to round to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv_norm(
    wide_in: int, wide_out: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(wide_in, wide_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wide_out))


class Vgg(nn.Module):
    """Convolutions in a row, then a flatten: a linear's columns are (channel, row, column)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for wider in (32, 64, 96):
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(wider, wider, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            width = wider
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(96 * 4 * 4, 128), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(128, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(images), 1))


class Basic(nn.Module):
    """Two convolutions and an identity (or projected) shortcut."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(wide_in, wide_out, 3, stride)
        self.second = _conv_norm(wide_out, wide_out)
        plain = stride == 1 and wide_in == wide_out
        self.shortcut = nn.Identity() if plain else _conv_norm(wide_in, wide_out, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in a ResNeXt), 1x1, with an in-place residual sum."""

    def __init__(self, wide_in: int, wide_out: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        inner = wide_out // 2
        self.reduce = _conv_norm(wide_in, inner, 1)
        self.spatial = _conv_norm(inner, inner, 3, stride, groups)
        self.expand = _conv_norm(inner, wide_out, 1)
        plain = stride == 1 and wide_in == wide_out
        self.shortcut = None if plain else _conv_norm(wide_in, wide_out, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.reduce(x))
        y = self.expand(self.relu(self.spatial(y)))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Stem, three stages of two residual blocks, global average, classifier."""

    def __init__(self, block: type[nn.Module], **options: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(3, 32), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        width = 32
        for wider, stride in ((32, 1), (64, 2), (128, 2)):
            blocks += [block(width, wider, stride, **options), block(wider, wider, 1, **options)]
            width = wider
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.stages(self.stem(images))), 1))


class _PreActivation(nn.Module):
    """Norm before convolution; a shortcut that widens pads channels with zeros on both sides ("option A")."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(wide_in)
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wide_out)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, 1, 1, bias=False)
        self.extra = (wide_out - wide_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        if self.extra:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return y + x


class PreActivationResNet(nn.Module):
    """A residual stream that passes through stages as zero-padded concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        widths = ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        self.blocks = nn.ModuleList(_PreActivation(*shape) for shape in widths)
        self.norm = nn.BatchNorm2d(128)
        self.fc = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.fc(functional.relu(self.norm(x)).mean((2, 3)))


class _Squeeze(nn.Module):
    """Squeeze and excitation: channels scaled by a gate computed from their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width // 4, 1)
        self.up = nn.Conv2d(width // 4, width, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.up(functional.relu(self.down(squeezed))))


class _Inverted(nn.Module):
    """Expand, depthwise, squeeze, project; a residual without activation where shapes allow."""

    def __init__(self, wide_in: int, wide_out: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        inner = wide_in * 3
        self.layers = nn.Sequential(
            _conv_norm(wide_in, inner, 1),
            activation(inplace=True),
            _conv_norm(inner, inner, 3, stride, groups=inner),
            activation(inplace=True),
            _Squeeze(inner),
            _conv_norm(inner, wide_out, 1),
        )
        self.residual = stride == 1 and wide_in == wide_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNet(nn.Module):
    """Inverted residuals with squeeze-excitation; `activation` is ReLU6 (V2) or Hardswish (V3)."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(3, 16, 3, 2), activation(inplace=True))
        shapes = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1))
        self.blocks = nn.Sequential(*(_Inverted(*shape, activation) for shape in shapes))
        self.head = nn.Sequential(_conv_norm(48, 96, 1), activation(inplace=True))
        self.classifier = nn.Sequential(
            nn.Linear(96, 128), activation(inplace=True), nn.Dropout(0.2), nn.Linear(128, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(images)))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class _DenseLayer(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(functional.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(functional.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """Each layer reads the concatenation of all before it: one norm spans many producers."""

    def __init__(self, growth: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv_norm(3, 32, 3, 2), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        width = 32
        for _ in range(2):
            self.blocks.append(nn.ModuleList(_DenseLayer(width + i * growth, growth) for i in range(depth)))
            width += depth * growth
            transition = [
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            self.transitions.append(nn.Sequential(*transition))
            width //= 2
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            features = [x]
            for layer in block:
                features.append(layer(features))
            x = transition(torch.cat(features, 1))
        return self.fc(functional.relu(self.norm(x)).mean((2, 3)))


def _double(wide_in: int, wide_out: int) -> nn.Sequential:
    return nn.Sequential(
        _conv_norm(wide_in, wide_out),
        nn.ReLU(inplace=True),
        _conv_norm(wide_out, wide_out),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Down, across, up by transposed convolutions; skips are concatenated before the decoder reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _double(3, 32), _double(32, 48), _double(48, 96)
        self.rise2, self.up2 = nn.ConvTranspose2d(96, 48, 2, 2), _double(96, 48)
        self.rise1 = nn.ConvTranspose2d(48, 32, 3, 2, padding=1, output_padding=1)
        self.up1 = _double(64, 32)
        self.head = nn.Conv2d(32, 5, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        high = self.down1(images)
        middle = self.down2(self.pool(high))
        low = self.bottom(self.pool(middle))
        middle = self.up2(torch.cat([middle, self.rise2(low)], dim=1))
        return self.head(self.up1(torch.cat([high, self.rise1(middle)], dim=1)))
