"""Some seconds of training on the digits, for networks that quantization is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from examples.digits import Digits, shifted

Net = TypeVar("Net", bound=nn.Module)
BATCH = 64


@dataclass(frozen=True)
class Training:
    """How long, how fast, and by how many pixels the images are shifted."""

    epochs: int
    rate: float
    reach: int


def fit(model: Net, data: Digits, training: Training, seed: int) -> Net:
    """Train in place by AdamW in one cycle; the order of the images is drawn from `seed`."""
    model.train()
    order = torch.Generator().manual_seed(seed)
    labels = data.train.labels
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training.rate, total_steps=training.epochs * (len(labels) // BATCH)
    )
    for _ in range(training.epochs):
        parts = torch.randperm(len(labels), generator=order).split(BATCH)
        for part in (part for part in parts if len(part) == BATCH):
            images = shifted(data.train.images[part], order, reach=training.reach)
            loss = F.cross_entropy(model(images), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
