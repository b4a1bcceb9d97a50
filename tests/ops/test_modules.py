"""Modules as people write them, captured, pruned at random in every group, and proven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from tests.architectures.randomise import randomise
from tests.ops.proving import prove

Inputs = tuple[Tensor, ...]


class Encoder(nn.Module):
    """PyTorch's own encoder layer: packed projections, batch and heads folded into one dimension."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.enter(x)).mean(1))


class CrossAttention(nn.Module):
    """Attention in sequence-first layout with a mask, weights returned, keys of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=7)
        self.query, self.key, self.value = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(5, 7)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.query(x), self.key(y), self.value(y)
        mixed, weights = self.attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1))
        return self.head(mixed.transpose(0, 1)), weights


class Gates(nn.Module):
    """CBAM: a channel gate from mean and maximum over space, a spatial gate from both over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        pooled = [F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)]
        x = x * sum(self.up(F.relu(self.down(p))) for p in pooled).sigmoid()
        joined = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.head((x * self.spatial(joined).sigmoid()).mean((2, 3)))


class Norms(nn.Module):
    """RMS norm by hand, a layer norm by hand, channels last, and L2-normalised features."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.scale, self.weight, self.bias = (nn.Parameter(torch.ones(size)) for size in (8, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = self.scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        x = self.inner(x)
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / torch.sqrt(variance + 1e-5) * self.weight + self.bias
        return self.head(F.normalize(x, dim=-1))


class Rotary(nn.Module):
    """Attention by hand with rotated queries and keys, by halves or interleaved, and a stored mask."""

    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.enter, self.qkv, self.leave = nn.Linear(5, 8), nn.Linear(8, 24), nn.Linear(8, 3)
        angles = torch.arange(6.0)[:, None] / 10 ** torch.arange(2.0)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())
        self.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool).tril())

    def rotate(self, x: Tensor) -> Tensor:
        if self.interleaved:
            even, odd = x[..., ::2], x[..., 1::2]
            pair = [even * self.cosine - odd * self.sine, odd * self.cosine + even * self.sine]
            return torch.stack(pair, -1).flatten(-2)
        cosine, sine = torch.cat([self.cosine] * 2, -1), torch.cat([self.sine] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cosine + torch.cat([-second, first], -1) * sine

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.enter(x)).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = self.rotate(q) @ self.rotate(k).transpose(-1, -2) * q.shape[-1] ** -0.5
        mixed = scores.masked_fill(~self.mask, -1e9).softmax(-1) @ v
        return self.leave(mixed.transpose(1, 2).reshape(batch, length, 8))


class Shuffle(nn.Module):
    """A ShuffleNet unit: grouped convolutions around a channel shuffle, half of the channels passed by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.first = nn.Conv2d(8, 8, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed, x = self.stem(x).chunk(2, 1)
        x = self.last(self.depthwise(torch.relu(self.first(x))))
        x = torch.cat([passed, x], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        return self.head(x).mean((2, 3))


class Several(nn.Module):
    """Two inputs and a structure of results, one of them an inner activation and one of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 8), nn.Linear(4, 8)
        self.inner, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        joined = torch.tanh(self.left(x) + self.right(y))
        inner = torch.tanh(self.inner(joined))
        logits = self.head(inner)
        return {"logits": logits, "inner": inner, "class": logits.argmax(-1)}


class Reparametrised(nn.Module):
    """Weight norm, spectral norm and standardised weights: what is stored is not what is convolved with."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = parametrizations.weight_norm(nn.Conv1d(3, 8, 1))
        self.middle = nn.Conv1d(8, 6, 1)
        self.last = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        weight = self.middle.weight
        weight = weight - weight.mean((1, 2), keepdim=True)
        x = torch.tanh(F.conv1d(x, weight, self.middle.bias)).mean(-1)
        return self.head(torch.tanh(self.last(x)))


class Pyramid(nn.Module):
    """Up and down, pixel shuffle, transposed convolution, and sizes taken from another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
        self.norm = nn.BatchNorm2d(12)
        self.up, self.rise = nn.Conv2d(12, 16, 1), nn.ConvTranspose2d(12, 6, 2, 2, groups=2)
        self.lateral, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(14, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.gelu(self.stem(x))
        low = F.relu(self.norm(self.down(high)))
        shuffled = F.pixel_shuffle(self.up(low), 2) + self.lateral(high)
        resized = F.interpolate(low, size=high.shape[-2:], mode="bilinear")[:, :4]
        return self.head(torch.cat([shuffled, self.rise(low), resized], 1))


def noise(*shapes: tuple[int, ...]) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)


MODULES: dict[str, tuple[Callable[[], nn.Module], Inputs, tuple[int, ...]]] = {
    "encoder": (Encoder, noise((6, 5)), (2, 4, 8, 12)),
    "encoder_norm_first": (lambda: Encoder(norm_first=True, activation="gelu"), noise((6, 5)), (2, 4, 8, 12)),
    "cross_attention": (CrossAttention, noise((4, 5), (6, 5)), (2, 4, 4, 6, 7, 8, 8)),
    "gates": (Gates, noise((3, 4, 4)), (2, 4, 4)),
    "norms": (Norms, noise((6, 5)), (6, 8)),
    "rotary_halves": (lambda: Rotary(False), noise((6, 5)), (2, 2, 8)),
    "rotary_interleaved": (lambda: Rotary(True), noise((6, 5)), (2, 2, 8)),
    "shuffle": (Shuffle, noise((3, 4, 4)), (2, 4, 4, 8)),
    "several": (Several, noise((5,), (4,)), (8,)),
    "reparametrised": (Reparametrised, noise((3, 4)), (6, 6, 8)),
    "pyramid": (Pyramid, noise((3, 4, 4)), (2, 3, 4, 4, 8)),
}


def program_of(name: str, *, core: bool = False) -> Program:
    build, inputs, _ = MODULES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomise(build(), 0, inputs)
    if not core:
        return capture(model, inputs)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = tuple({0: batch} for _ in inputs)
    return capture(torch.export.export(model, inputs, dynamic_shapes=shapes).run_decompositions())


SLOW = {"encoder_norm_first", "rotary_halves", "several", "shuffle"}
"""Second forms; the default tier leaves them, and most of the core dialect, to the slow one."""
QUICK_CORE = {"cross_attention", "gates", "norms", "reparametrised"}


def tiered(slow: set[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in MODULES]


@pytest.mark.parametrize("name", tiered(SLOW))
def test_modules_as_people_write_them(name: str) -> None:
    proven = prove(program_of(name), seeds=1)
    assert not [item for item in proven.analysis.frozen if "rule" in item.reason]
    assert tuple(proven.sizes) == MODULES[name][2]


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # raised inside run_decompositions
@pytest.mark.parametrize("name", tiered(set(MODULES) - QUICK_CORE))
def test_the_core_dialect_has_the_same_groups(name: str) -> None:
    """Decomposed to core ATen, a model has the same prunable channels, by size."""
    proven = prove(program_of(name, core=True), seeds=1)
    assert not [item for item in proven.analysis.frozen if "rule" in item.reason]
    assert tuple(proven.sizes) == MODULES[name][2]
