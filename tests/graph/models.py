"""Small models for the graph tests: one construct each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class SmallNet(nn.Module):
    """Convolution, batch norm, in-place relu, dropout and a linear layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.conv(x)))
        y = self.drop(y.mean((2, 3)))
        return self.fc(self.fc(y))


class Tied(nn.Module):
    """Two linear layers that share one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.first(x)
        return {"hidden": hidden, "logits": self.second(hidden)}


class Apply(nn.Module):
    """A 1x1 convolution that a test's function puts to use."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("state", torch.ones(4))
        self.function = function

    def forward(self, x: torch.Tensor, *others: Any, **named: Any) -> Any:
        return self.function(self, x, *others, **named)


def image(batch: int = 2, channels: int = 4, size: int = 6, seed: int = 0) -> torch.Tensor:
    """Normally distributed images."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Token ids below 64."""
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(seed))
