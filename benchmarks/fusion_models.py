"""One small network per fusion rule, in which the rule applies at sizes that real networks have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


def _excited(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    for name in ("a", "b"):
        x = F.relu(parts[name](x))
        x = x * torch.sigmoid(parts[f"{name}_gate"](x.mean((2, 3), keepdim=True)))
    return x


def _norms() -> nn.Module:
    layers = [(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*(layer for triple in layers for layer in triple))


def _normed_rows() -> nn.Module:
    widths = (512, 1024, 1024, 512)
    pairs = [(nn.BatchNorm1d(a), nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*(layer for triple in pairs for layer in triple))


def _patches(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
    return parts["stem"]((x - mean[:, None, None]) / std[:, None, None])


def _bytes(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    return F.relu(parts["stem"](x / 127.5 - 1.0))


def _hard_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3.0) / 6.0


def _spelled(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    for part in parts.values():
        x = _hard_swish(part(x))
    return x


def _padded(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    for part in parts.values():
        x = F.relu(part(F.pad(x, [1, 1, 1, 1])))
    return F.avg_pool2d(F.pad(x, [1, 1, 1, 1]), 3, 2)


def _collapsible(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
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


def _pooled_by_windows(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    """The end of EfficientNet as `transformers` writes it: a window larger than the image."""
    return parts["head"](F.avg_pool2d(F.relu(parts["body"](x)), 64, ceil_mode=True))


def _padded_on_one_side(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    for part in parts.values():
        x = F.relu(part(F.pad(x, [0, 1, 0, 1])))
    return x


def _last_and_first(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    for part in parts.values():
        x = F.hardswish(part(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x


def _twice(parts: Mapping[str, nn.Module], x: Tensor) -> Tensor:
    return parts["head"](parts["body"](x)) + parts["other"](parts["body"](x))


@dataclass(frozen=True)
class Subject:
    """A network for a rule: a pass by its spelling in recipes, a lowering form of a target, or a rewrite of
    the lowering that every file goes through.

    `instead` are rules that do a part of it where it is missing; "without" is without them too. `never` are
    rules that would hide it; both are without them. `integers`: both are in INT8. `static`: the batch is one.
    """

    rule: str
    network: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    instead: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    integers: bool = False
    static: bool = False


INEXACT = frozenset({"pool-globally"})
"""Rules without which the runtime does not compute what the program does."""

UNTIMED: Mapping[str, str] = {
    "remove-identities": "clears the way for other rules; the runtime removes identities itself",
    "fold-parameters": "computes at once what the runtime would compute as it loads",
    "share-initializers": "the size of the file",
    "store-zero-points": "files that load: the runtime wants zero points stored",
    "mask-with-infinity": "rows that see nothing come out as in torch",
    "cancel-quantization": "models that come with pairs after pairs; our own programs have none",
}
"""What a file goes through for another reason than speed."""


def _vit_block() -> nn.Module:
    return Attending(384, 6, 197, masked=False)


def _squeezed() -> nn.Module:
    return Written(
        _excited,
        a=nn.Conv2d(64, 64, 3, padding=1),
        b=nn.Conv2d(64, 64, 3, padding=1),
        a_gate=nn.Conv2d(64, 64, 1),
        b_gate=nn.Conv2d(64, 64, 1),
    )


def _spelled_out() -> nn.Module:
    return Written(_spelled, a=nn.Conv2d(64, 64, 1), b=nn.Conv2d(64, 64, 1), c=nn.Conv2d(64, 64, 1))


def _stem(**options: int) -> nn.Module:
    return nn.Conv2d(3, 64, **options)  # type: ignore[arg-type]


SUBJECTS = (
    Subject("fuse-batch-norm", "3 x conv, norm, relu; 64 at 28", _norms, (1, 64, 28, 28)),
    Subject(
        "fuse-affine",
        "2 ConvNeXt blocks; 96 at 28",
        lambda: nn.Sequential(LayerScaled(96), LayerScaled(96)),
        (1, 96, 28, 28),
    ),
    Subject("fuse-affine", "norms before linears; 512 to 1024", _normed_rows, (16, 512)),
    Subject(
        "fuse-input-normalization",
        "ViT's patches of 16, mean per channel",
        lambda: Written(_patches, stem=_stem(kernel_size=16, stride=16)),
        (1, 3, 224, 224),
        instead=("fuse-affine",),
    ),
    Subject(
        "fuse-input-normalization",
        "padded stem 7x7, one mean",
        lambda: Written(_bytes, stem=_stem(kernel_size=7, stride=2, padding=3)),
        (1, 3, 224, 224),
    ),
    Subject(
        "fuse-padding",
        "padded depthwise 3x3 and pool; 64 at 56",
        lambda: Written(_padded, a=nn.Conv2d(64, 64, 3, groups=64), b=nn.Conv2d(64, 64, 3, 2, groups=64)),
        (1, 64, 56, 56),
    ),
    Subject(
        "merge-branches",
        "3 RepVGG blocks; 64 at 28",
        lambda: nn.Sequential(*(Branches(64) for _ in range(3))),
        (1, 64, 28, 28),
    ),
    Subject(
        "merge-linears",
        "expanded 1x1 then 3x3; 64-256-64 at 28",
        lambda: Written(
            _collapsible, wide=nn.Conv2d(64, 256, 1, bias=False), narrow=nn.Conv2d(256, 64, 3, padding=1)
        ),
        (1, 64, 28, 28),
    ),
    Subject(
        "recognize-activations",
        "3 x 1x1 conv, hard-swish spelled out; 64 at 28",
        _spelled_out,
        (1, 64, 28, 28),
    ),
    Subject(
        "recognize-activations",
        "INT8: the same",
        _spelled_out,
        (1, 64, 28, 28),
        integers=True,
    ),
    Subject(
        "cancel-layout",
        "hard-swish on channels last; 64 at 28",
        lambda: Written(_last_and_first, a=nn.Conv2d(64, 64, 1), b=nn.Conv2d(64, 64, 1)),
        (1, 64, 28, 28),
    ),
    Subject(
        "remove-duplicates",
        "two heads that each call the body; 64 at 28",
        lambda: Written(
            _twice,
            body=nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()),
            head=nn.Sequential(nn.Conv2d(64, 64, 1), nn.Sigmoid()),
            other=nn.Conv2d(64, 64, 1),
        ),
        (1, 64, 28, 28),
    ),
    Subject(
        "drop-masks",
        "ViT-S block under an open mask; 197 tokens",
        lambda: Attending(384, 6, 197, masked=True),
        (1, 197, 384),
    ),
    Subject(
        "multi-head-attention",
        "ViT-S block; 197 tokens",
        _vit_block,
        (1, 197, 384),
    ),
    Subject(
        "use-global-average-pool",
        "2 convolutions with squeeze-excitation; 64 at 28",
        _squeezed,
        (1, 64, 28, 28),
    ),
    Subject(
        "transpose-keys-directly",
        "ViT-S block; 197 tokens",
        _vit_block,
        (1, 197, 384),
        never=("multi-head-attention",),
    ),
    Subject(
        "lighten-guards",
        "attention of padded tokens; 6 heads, 197",
        lambda: Padded(384, 6, 197, masked=False),
        (1, 197, 384),
    ),
    Subject(
        "divide-by-root",
        "2 hand-written RMS norms; 197 x 384",
        lambda: RootNormed(384),
        (1, 197, 384),
    ),
    Subject(
        "pool-globally",
        "INT8: a window larger than the image; 320-1280 at 7",
        lambda: Written(_pooled_by_windows, body=nn.Conv2d(320, 1280, 1), head=nn.Conv2d(1280, 100, 1)),
        (1, 320, 7, 7),
        integers=True,
    ),
    Subject(
        "gather-shuffles",
        "INT8: 1x1 conv, 3 ShuffleNetV2 units; 116 at 28",
        lambda: nn.Sequential(nn.Conv2d(116, 116, 1), nn.ReLU(), *(Shuffled(116) for _ in range(3))),
        (1, 116, 28, 28),
        integers=True,
        static=True,
    ),
    Subject(
        "convolve-norms",
        "INT8: 2 DenseNet layers; 128 and 160 at 28",
        lambda: nn.Sequential(Preactivated(128, 32), Preactivated(160, 32), nn.Conv2d(192, 96, 1)),
        (1, 128, 28, 28),
        integers=True,
    ),
    Subject(
        "space-to-depth",
        "INT8: stem 3x3 stride 2 to 32 at 224",
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1, groups=32)),
        (1, 3, 224, 224),
        integers=True,
    ),
    Subject(
        "pad-in-convolutions",
        "INT8: 2 depthwise 3x3 stride 2, padded on one side; 96 at 112",
        lambda: Written(
            _padded_on_one_side,
            stem=nn.Conv2d(96, 96, 2),
            a=nn.Conv2d(96, 96, 3, 2, groups=96),
            b=nn.Conv2d(96, 96, 3, 2, groups=96),
        ),
        (1, 96, 112, 112),
        integers=True,
    ),
    Subject(
        "fold-weight-transposes",
        "INT8: ViT-S block; 197 tokens",
        _vit_block,
        (1, 197, 384),
        integers=True,
    ),
    Subject(
        "use-global-average-pool",
        "INT8: 2 convolutions with squeeze-excitation; 64 at 28",
        _squeezed,
        (1, 64, 28, 28),
        integers=True,
    ),
)
