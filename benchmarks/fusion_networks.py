"""The networks of `benchmarks.fusion`: blocks of real networks, each with what one rule is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Written(nn.Module):
    """A module of parts and a function of them and the input."""

    def __init__(
        self, function: Callable[[Mapping[str, nn.Module], Tensor], Tensor], **parts: nn.Module
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.parts, x)


class LayerScaled(nn.Module):
    """A block of ConvNeXt: depthwise convolution, norm, two linears on channels last, LayerScale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(0.1 * torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


class Branches(nn.Module):
    """A block of RepVGG as it is trained: a 3x3 and a 1x1 convolution and the input, each with its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.point = nn.Conv2d(width, width, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[0](self.dense(x)) + self.norms[1](self.point(x)) + self.norms[2](x))


class Attending(nn.Module):
    """A block of a vision transformer; masked, it gets the mask that hides nothing some libraries write."""

    def __init__(self, width: int, heads: int, tokens: int, *, masked: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.take = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.give = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads = heads
        self.register_buffer("mask", torch.ones(tokens, tokens, dtype=torch.bool) if masked else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (take(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for take in self.take)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        x = x + self.give(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Padded(Attending):
    """The same under a mask of the tokens that are there, which the input says."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (take(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for take in self.take)
        there = (x[..., 0] > -3.0)[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=there)
        return x + self.give(mixed.transpose(1, 2).flatten(2))


class RootNormed(nn.Module):
    """A linear between two root-mean-square norms, written by hand as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.rand(width) + 0.5 for _ in range(2))
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self._normed(x, 0))
        return self._normed(x, 1)

    def _normed(self, x: Tensor, place: int) -> Tensor:
        return self.scales[place] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def excited(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Two convolutions, each with a gate over its channels."""
    for name in ("a", "b"):
        x = F.relu(parts[name](x))
        x = x * torch.sigmoid(parts[f"{name}_gate"](x.mean((2, 3), keepdim=True)))
    return x


def norms() -> nn.Module:
    """Three convolutions, each with its norm."""
    layers = [(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*(layer for triple in layers for layer in triple))


def normed_rows() -> nn.Module:
    """Linears behind norms."""
    widths = (512, 1024, 1024, 512)
    pairs = [(nn.BatchNorm1d(a), nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*(layer for triple in pairs for layer in triple))


def patches(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """The input normalised by channel, then cut into patches."""
    mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
    return parts["stem"]((x - mean[:, None, None]) / std[:, None, None])


def byte_stem(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Bytes scaled to -1..1, then a stem."""
    return F.relu(parts["stem"](x / 127.5 - 1.0))


def hard_swish(x: Tensor) -> Tensor:
    """A hard-swish as it was written before there was an operator."""
    return x * F.relu6(x + 3.0) / 6.0


def spelled(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Layers with spelled-out hard-swishes."""
    for part in parts.values():
        x = hard_swish(part(x))
    return x


def padded(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Convolutions and a pool behind explicit padding."""
    for part in parts.values():
        x = F.relu(part(F.pad(x, [1, 1, 1, 1])))
    return F.avg_pool2d(F.pad(x, [1, 1, 1, 1]), 3, 2)


def collapsible(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Two convolutions with nothing between."""
    return F.relu(parts["narrow"](parts["wide"](x)))


class Shuffled(nn.Module):
    """A unit of ShuffleNetV2: half of the channels through three convolutions, then two groups shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.first, self.last = nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 1)
        self.depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1)
        worked = F.relu(self.last(self.depthwise(F.relu(self.first(worked)))))
        joined = torch.cat([kept, worked], 1)
        return joined.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Preactivated(nn.Module):
    """A layer of DenseNet: norm, rectifier, 1x1, norm, rectifier, 3x3; its input goes along."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.before, self.between = nn.BatchNorm2d(width), nn.BatchNorm2d(4 * growth)
        self.narrow = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.wide = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(F.relu(self.between(self.narrow(F.relu(self.before(x))))))
        return torch.cat([x, y], 1)


def pooled_by_windows(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """The end of EfficientNet as `transformers` writes it: a window larger than the image."""
    return parts["head"](F.avg_pool2d(F.relu(parts["body"](x)), 64, ceil_mode=True))


def padded_on_one_side(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Convolutions whose input is padded at its ends."""
    for part in parts.values():
        x = F.relu(part(F.pad(x, [0, 1, 0, 1])))
    return x


def last_and_first(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """Channels last and back around every activation."""
    for part in parts.values():
        x = F.hardswish(part(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x


def twice(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """A body that is called twice."""
    return parts["head"](parts["body"](x)) + parts["other"](parts["body"](x))


def vit_block() -> nn.Module:
    """A block of ViT-S."""
    return Attending(384, 6, 197, masked=False)


def squeezed() -> nn.Module:
    """Two convolutions of 64 channels with squeeze-excitation."""
    return Written(
        excited,
        a=nn.Conv2d(64, 64, 3, padding=1),
        b=nn.Conv2d(64, 64, 3, padding=1),
        a_gate=nn.Conv2d(64, 64, 1),
        b_gate=nn.Conv2d(64, 64, 1),
    )


def spelled_out() -> nn.Module:
    """Three 1x1 convolutions with spelled-out hard-swishes."""
    return Written(spelled, a=nn.Conv2d(64, 64, 1), b=nn.Conv2d(64, 64, 1), c=nn.Conv2d(64, 64, 1))


def stem(**options: int) -> nn.Module:
    """The first convolution of an image network."""
    return nn.Conv2d(3, 64, **options)  # type: ignore[arg-type]
