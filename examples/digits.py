"""Handwritten digits as a small vision task: scikit-learn's 1797 real images, enlarged from 8x8 to 32x32.

The data comes inside the scikit-learn package, so nothing is downloaded. The network is an ordinary small
residual CNN, moderately too wide for the task as trained networks are; training is plain SGD.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

CLASSES = 10
SIZE = 32
EPOCHS = 20
RATE = 0.1
# An ordinary decay. What pruning by half leaves without training or calibration data is 10 %, which is
# guessing, and 99.3 % of the validation images once `optimize` has re-fitted the remaining weights on 256
# training images; other decays: python -m benchmarks.digits_decay
DECAY = 1e-3


@dataclass(frozen=True)
class Split:
    """Images of shape (N, 1, 32, 32) in standard units and their labels of shape (N,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Digits:
    """Disjoint, stratified parts of the data set."""

    train: Split
    validation: Split
    test: Split


def load(seed: int = 0) -> Digits:
    """The data: 1077 images for training, 270 for validation, 450 for the test."""
    raw = load_digits()
    small = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    large = F.interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    labels = torch.tensor(raw.target)
    rest, test = _stratified(torch.arange(len(labels)), labels, 450, seed)
    train, validation = _stratified(rest, labels, 270, seed)
    mean, std = large[train].mean(), large[train].std()
    images = (large - mean) / std
    return Digits(*(Split(images[part], labels[part]) for part in (train, validation, test)))


def _stratified(indices: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    kept, taken = train_test_split(
        indices.numpy(), test_size=count, random_state=seed, stratify=labels[indices].numpy()
    )
    return torch.from_numpy(kept), torch.from_numpy(taken)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual CNN with 0.68 M parameters: stem, three stages, global average pool, linear."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.stages = nn.Sequential(
            Block(first, first, 1),
            Block(first, second, 2),
            Block(second, second, 1),
            Block(second, third, 2),
            Block(third, third, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(third, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 32, 32) to logits of shape (N, 10)."""
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


def accuracy(forward: Callable[[Tensor], Tensor], split: Split, batch: int = 64) -> float:
    """Share of right answers of anything that maps images to logits."""
    right = 0
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        with torch.no_grad():
            right += int((torch.as_tensor(forward(images)).argmax(1) == labels).sum())
    return right / len(split.labels)


def train(data: Digits, *, epochs: int = EPOCHS, seed: int = 0, decay: float = DECAY) -> DigitNet:
    """A trained DigitNet in eval mode; a line per epoch is logged."""
    torch.manual_seed(seed)
    model = DigitNet().train()
    order = torch.Generator().manual_seed(seed)
    batch = 64
    steps = epochs * (len(data.train.labels) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        shuffled = torch.randperm(len(data.train.labels), generator=order)
        batches = [part for part in shuffled.split(batch) if len(part) == batch]
        for part in batches:
            images = shifted(data.train.images[part], order)
            loss = F.cross_entropy(model(images), data.train.labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        log.info("epoch %2d/%d  loss %.3f", epoch + 1, epochs, total / len(batches))
    return model.eval()


def shifted(images: Tensor, generator: torch.Generator, reach: int = 3) -> Tensor:
    """Each image moved by up to `reach` pixels in both directions, the border repeated."""
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    rows, columns = torch.randint(0, 2 * reach + 1, (2, len(images)), generator=generator).tolist()
    return torch.stack(
        [
            image[:, row : row + SIZE, column : column + SIZE]
            for image, row, column in zip(padded, rows, columns, strict=True)
        ]
    )
