"""A depthwise network whose channels are spread over many powers of two, as those of MobileNets are.

It is trained on the digits like any other; then the channels between two layers are scaled up and the
weights that read them down by the same powers of two, so that it computes the same bits. What int8 makes of
it depends on whether a quantizer knows how to undo that.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.digits_training import Training, fit
from examples.digits import CLASSES, Digits

OCTAVES = 4.0
"""Channels are scaled by up to 2^4, up and down: 256 between them, as in MobileNetV2."""


def _unit(inputs: int, outputs: int, size: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class DepthwiseNet(nn.Module):
    """Stem, three pairs of a depthwise 3x3 and a pointwise convolution, average pool, linear."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        units = [_unit(1, widths[0], 3, 2, 1)]
        for before, after in pairwise(widths):
            units += [
                _unit(before, before, 3, 2 if after > before else 1, before),
                _unit(before, after, 1, 1, 1),
            ]
        self.units = nn.Sequential(*units)
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 32, 32) to logits of shape (N, 10)."""
        return self.head(F.adaptive_avg_pool2d(self.units(x), 1).flatten(1))


def trained(data: Digits, *, seed: int = 0) -> DepthwiseNet:
    """The network in evaluation mode, some seconds of training later."""
    torch.manual_seed(seed)
    return fit(DepthwiseNet(), data, Training(epochs=12, rate=1e-2, reach=2), seed)


@torch.no_grad()
def spread(model: DepthwiseNet, *, octaves: float = OCTAVES, seed: int = 0) -> DepthwiseNet:
    """Spread the channels in place; every output stays what it was, to the bit."""
    generator = torch.Generator().manual_seed(seed)
    for first, second in pairwise(model.units):
        assert isinstance(first, nn.Sequential)
        assert isinstance(second, nn.Sequential)
        norm, reader = first[1], second[0]
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(reader, nn.Conv2d)
        exponents = (torch.rand(norm.num_features, generator=generator) * 2.0 - 1.0) * octaves
        factors = torch.exp2(exponents.round())
        norm.weight.mul_(factors)
        norm.bias.mul_(factors)
        along = 0 if reader.groups > 1 else 1
        reader.weight.div_(factors.reshape([-1 if dim == along else 1 for dim in range(4)]))
    return model
