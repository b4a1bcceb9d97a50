"""Small residual models for depth removal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from tests.architectures.randomise import randomise


class Residual(nn.Module):
    """`x + f(x)`, or `f(x) + x`."""

    def __init__(self, width: int, hidden: int, *, first: bool = True) -> None:
        super().__init__()
        self.up, self.down, self.first = nn.Linear(width, hidden), nn.Linear(hidden, width), first

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(x).relu())
        return x + y if self.first else y + x


class Stack(nn.Module):
    """A stem, blocks of different sizes and a head; the second block has its terms the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 4)
        self.a = Residual(4, 6)
        self.b = Residual(4, 6, first=False)
        self.c = Residual(4, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(self.stem(x)))))


class Convolutions(nn.Module):
    """Two residual blocks with batch norm and a projection shortcut between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.wide = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.shortcut = nn.Conv2d(4, 8, 1)
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.one(x) + x).relu()
        x = (self.wide(x) + self.shortcut(x)).relu()
        return (self.two(x) + x).relu().mean((2, 3))


def program_of(model: nn.Module, *shape: int, seed: int = 0) -> Program:
    """The captured program with all parameters drawn at random."""
    inputs = (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)),)
    return capture(randomise(model, seed, inputs), inputs)


def stack() -> Program:
    return program_of(Stack(), 2, 5)


def convolutions() -> Program:
    return program_of(Convolutions(), 2, 3, 6, 6)
