"""The small network of the API tests: a residual block between two convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGE = (3, 12, 12)


class Net(nn.Module):
    """A residual block between two convolutions, wide enough for blocks of sixteen channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1)
        )
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(self.drop(x.mean((2, 3))))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed))
