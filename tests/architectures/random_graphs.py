"""Random small networks for property tests: a recipe is data that hypothesis can draw, shrink and print.

A recipe is a stem width and a list of steps. Every step reads one or two of the tensors made so far
(indices wrap around) and adds one or two; what no step reads is pooled, concatenated and classified. A step
that does not fit the shapes it meets does nothing, so every recipe is a network. Images are (batch, 3, 8,
8), logits (batch, 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.architectures.randomise import randomise

Shape = tuple[int, int]  # channels, side


@dataclass(frozen=True)
class Step:
    """`kind` names a maker; `source` and `other` pick tensors; `width` is in fours; `choice` is an option."""

    kind: str
    source: int = -1
    other: int = 0
    width: int = 2
    choice: int = 0


@dataclass(frozen=True)
class Recipe:
    """What `RandomNet` is made from; `seed` draws the parameters."""

    steps: tuple[Step, ...]
    width: int = 4
    seed: int = 0

    def model(self) -> nn.Module:
        """The network in eval mode with all parameters drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return randomise(RandomNet(self), self.seed, self.inputs(8))

    def inputs(self, batch: int = 2, *, seed: int = 0) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),)


class Block(nn.Module):
    """A function of two tensors with submodules: `apply(self, x, y)` returns the tensors that it adds."""

    def __init__(
        self, apply: Callable[[Block, Tensor, Tensor], tuple[Tensor, ...]], **modules: nn.Module
    ) -> None:
        super().__init__()
        self.rule = apply
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self.rule(self, x, y)


Made = tuple[Block, tuple[Shape, ...]] | None
Maker = Callable[[Step, Shape, Shape], Made]


class RandomNet(nn.Module):
    """The network of a recipe; `reads` holds, per block, which two tensors it reads."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4 * recipe.width, 3, padding=1)
        shapes: list[Shape] = [(4 * recipe.width, 8)]
        self.blocks, self.reads, read = nn.ModuleList(), [], set()
        for step in recipe.steps:
            source, other = step.source % len(shapes), step.other % len(shapes)
            made = MAKERS[step.kind](step, shapes[source], shapes[other])
            if made is None:
                continue
            self.blocks.append(made[0])
            self.reads.append((source, other))
            read.update((source, other) if step.kind in BINARY else (source,))
            shapes.extend(made[1])
        self.ends = [index for index in range(len(shapes)) if index not in read]
        self.head = nn.Linear(sum(shapes[index][0] for index in self.ends), 4)

    def forward(self, images: Tensor) -> Tensor:
        tensors = [torch.relu(self.stem(images))]
        for block, (source, other) in zip(self.blocks, self.reads, strict=True):
            tensors.extend(block(tensors[source], tensors[other]))
        return self.head(torch.cat([tensors[index].mean((2, 3)) for index in self.ends], dim=1))


def _convolution(step: Step, shape: Shape, other: Shape) -> Made:
    """Any stride, grouping and bias, with a batch norm behind on every second choice."""
    width, side = shape
    groups = (1, 1, 2, 4)[step.choice % 4]
    stride = 2 if step.choice % 3 == 2 and side >= 4 else 1
    wider = 4 * step.width
    convolution = nn.Conv2d(width, wider, 3, stride, 1, groups=groups, bias=step.choice % 2 == 0)
    norm = nn.BatchNorm2d(wider) if step.choice % 2 else nn.Identity()
    block = Block(
        lambda m, x, y: (functional.relu(m.norm(m.convolution(x))),), convolution=convolution, norm=norm
    )
    return block, ((wider, (side - 1) // stride + 1),)


def _depthwise(step: Step, shape: Shape, other: Shape) -> Made:
    """A channel multiplier of one or two."""
    width, side = shape
    multiplied = width * (1 + step.choice % 2)
    if multiplied > 64:
        return None
    convolution = nn.Conv2d(width, multiplied, 3, padding=1, groups=width)
    return Block(lambda m, x, y: (m.convolution(x),), convolution=convolution), ((multiplied, side),)


def _transposed(step: Step, shape: Shape, other: Shape) -> Made:
    width, side = shape
    if side > 8:
        return None
    groups, wider = 1 + step.choice % 2, 4 * step.width
    convolution = nn.ConvTranspose2d(width, wider, 2, 2, groups=groups)
    norm = nn.BatchNorm2d(wider)
    block = Block(lambda m, x, y: (m.norm(m.convolution(x)),), convolution=convolution, norm=norm)
    return block, ((wider, 2 * side),)


def _norm(step: Step, shape: Shape, other: Shape) -> Made:
    width, _ = shape
    kinds = (nn.BatchNorm2d(width), nn.GroupNorm(4, width), nn.GroupNorm(1, width), nn.Dropout(0.5))
    return Block(lambda m, x, y: (m.norm(x),), norm=kinds[step.choice % 4]), (shape,)


def _activation(step: Step, shape: Shape, other: Shape) -> Made:
    kinds = (
        nn.ReLU(inplace=True),
        nn.Hardswish(),
        nn.SiLU(),
        nn.GELU(),
        nn.ReLU6(),
        nn.Sigmoid(),
        nn.Identity(),
    )
    # a copy first: the in-place form must not reach a tensor that other steps read
    return Block(lambda m, x, y: (m.act(x * 1.0),), act=kinds[step.choice % len(kinds)]), (shape,)


def _sum(step: Step, shape: Shape, other: Shape) -> Made:
    """A residual: the partner is projected where its width differs."""
    if shape[1] != other[1]:
        return None
    project = nn.Identity() if shape == other else nn.Conv2d(other[0], shape[0], 1, bias=False)
    if step.choice % 2:
        return Block(lambda m, x, y: (x * torch.sigmoid(m.project(y)),), project=project), (shape,)
    return Block(lambda m, x, y: (x + m.project(y),), project=project), (shape,)


def _concatenate(step: Step, shape: Shape, other: Shape) -> Made:
    if shape[1] != other[1] or shape[0] + other[0] > 64:
        return None
    return Block(lambda m, x, y: (torch.cat((x, y), 1),)), ((shape[0] + other[0], shape[1]),)


def _split(step: Step, shape: Shape, other: Shape) -> Made:
    """Two halves by `chunk`, or a cut elsewhere by slices or `split`."""
    width, side = shape
    cut = width // 2 if step.choice % 3 == 0 else 4 * (1 + step.width % max(width // 4 - 1, 1))
    if cut >= width or cut % 4:
        return None
    if step.choice % 3 == 0:
        block = Block(lambda m, x, y: x.chunk(2, dim=1))
    elif step.choice % 3 == 1:
        block = Block(lambda m, x, y: (x[:, :cut], x[:, cut:]))
    else:
        block = Block(lambda m, x, y: x.split([cut, width - cut], dim=1))
    return block, ((cut, side), (width - cut, side))


def _pool(step: Step, shape: Shape, other: Shape) -> Made:
    width, side = shape
    if side < 4:
        return None
    pool = (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(side // 2))[step.choice % 3]
    return Block(lambda m, x, y: (m.pool(x),), pool=pool), ((width, side // 2),)


def _gate(step: Step, shape: Shape, other: Shape) -> Made:
    width, _ = shape
    down, up = nn.Linear(width, 8), nn.Linear(8, width)

    def rule(m: Block, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        gate = torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3))))))
        return (x * gate[:, :, None, None],)

    return Block(rule, down=down, up=up), (shape,)


def _pad(step: Step, shape: Shape, other: Shape) -> Made:
    """Zero channels before and after, as in a parameter-free shortcut."""
    before, after = ((4, 4), (0, 8), (4, 0))[step.choice % 3]
    width = shape[0] + before + after
    if width > 64:
        return None
    return Block(lambda m, x, y: (functional.pad(x, (0, 0, 0, 0, before, after)),)), ((width, shape[1]),)


def _shuffle(step: Step, shape: Shape, other: Shape) -> Made:
    """Channel shuffle: (groups, width) becomes (width, groups)."""
    width, side = shape
    groups = (2, 4)[step.choice % 2]
    block = Block(
        lambda m, x, y: (
            x.view(-1, groups, width // groups, side, side).transpose(1, 2).reshape(-1, width, side, side),
        )
    )
    return block, (shape,)


def _channels_last(step: Step, shape: Shape, other: Shape) -> Made:
    """Norm and linear over the last dimension, between two permutations."""
    width, side = shape
    norm, linear = nn.LayerNorm(width), nn.Linear(width, 4 * step.width)
    block = Block(
        lambda m, x, y: (m.linear(m.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),),
        norm=norm,
        linear=linear,
    )
    return block, ((4 * step.width, side),)


def _attention(step: Step, shape: Shape, other: Shape) -> Made:
    """Self-attention over positions with packed qkv and two heads."""
    width, side = shape
    if side > 8:
        return None
    inner = 4 * step.width
    qkv, project = nn.Linear(width, 3 * inner), nn.Linear(inner, width)

    def rule(m: Block, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        tokens = x.flatten(2).transpose(1, 2)
        packed = m.qkv(tokens).reshape(-1, side * side, 3, 2, inner // 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(packed[0], packed[1], packed[2])
        mixed = m.project(mixed.transpose(1, 2).reshape(-1, side * side, inner))
        return (x + mixed.transpose(1, 2).reshape(-1, width, side, side),)

    return Block(rule, qkv=qkv, project=project), (shape,)


MAKERS: dict[str, Maker] = {
    "convolution": _convolution,
    "depthwise": _depthwise,
    "transposed": _transposed,
    "norm": _norm,
    "activation": _activation,
    "sum": _sum,
    "concatenate": _concatenate,
    "split": _split,
    "pool": _pool,
    "gate": _gate,
    "pad": _pad,
    "shuffle": _shuffle,
    "channels_last": _channels_last,
    "attention": _attention,
}
BINARY = frozenset({"sum", "concatenate"})

_COMMON = ("convolution", "convolution", "convolution", "sum", "sum", "norm", "activation")


def recipes(max_steps: int = 8) -> st.SearchStrategy[Recipe]:
    """Recipes of one to `max_steps` steps; convolutions and sums are drawn more often than the rest."""
    step = st.builds(
        Step,
        kind=st.sampled_from((*_COMMON, *MAKERS)),
        source=st.integers(-3, -1),  # recent tensors: deep rather than wide
        other=st.integers(-6, -1),
        width=st.integers(2, 6),
        choice=st.integers(0, 6),
    )
    steps = st.lists(step, min_size=1, max_size=max_steps).map(tuple)
    return st.builds(Recipe, steps=steps, width=st.integers(2, 6), seed=st.integers(0, 3))
