"""A task that small models learn in a second, and the training steps that tests use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxcompress.graph.program import Program


class Net(nn.Module):
    """Convolutions with batch norm, a residual block, dropout and a linear head; 2 classes."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(width, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(inner, width, 3, padding=1), nn.BatchNorm2d(width))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.two(self.one(x))).relu()
        return self.head(self.drop(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))


def net(width: int = 16, inner: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return Net(width, inner).eval()


def example() -> Tensor:
    return torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def data(count: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images whose class is where their energy is: left or right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = 0.3 * torch.randn(count, 1, 6, 6, generator=generator)
    images[labels == 0, :, :, :3] += 1
    images[labels == 1, :, :, 3:] += 1
    return images, labels


def train(
    model: nn.Module | Program,
    steps: int,
    *,
    rate: float = 0.05,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> list[float]:
    """SGD on the task; returns the loss at every step, penalty aside."""
    module = model.module if isinstance(model, Program) else model
    optimizer = torch.optim.SGD(module.parameters(), rate, momentum=0.9)
    images, labels = data()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(float(loss.detach()))
        (loss if penalty is None else loss + penalty(module)).backward()
        optimizer.step()
    return losses
