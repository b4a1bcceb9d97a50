"""The scale of each channel of a weight by search: a smaller range rounds the many finer and clamps the few.

Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment" (2019), and
Nagel et al., "A white paper on neural network quantization" (2021), section 3.1: the range of the least mean
squared error. With 8 bits the largest magnitude is nearly always best; the search never does worse on the
weights themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.numerics.affine import SMALLEST_SCALE, channel_scales

SHARES = 24
"""How many shares of a channel's largest magnitude are tried."""

NARROWEST = 0.5
"""The smallest of them."""


def mse_channel_scales(weight: Tensor, axis: int | None, limit: int) -> Tensor:
    """The scales of `affine.channel_scales`, each shrunk to the least squared error of its weights.

    Args:
        weight: of any rank; `axis` counts its channels (None: one scale for all).
        limit: the largest integer.

    Returns:
        float32, `[channels]` (`[1]` for one scale).
    """
    widest = channel_scales(weight, axis, limit)
    rows = _rows(weight.detach().double(), axis)
    best, least = widest, torch.full((len(widest),), float("inf"), dtype=torch.float64)
    for share in torch.linspace(1.0, NARROWEST, SHARES).tolist():
        scales = (widest * share).clamp(min=SMALLEST_SCALE)
        unit = scales.double()[:, None]
        errors = ((rows / unit).round().clamp(-limit, limit) * unit - rows).square().sum(1)
        best = torch.where(errors < least, scales, best)
        least = torch.minimum(errors, least)
    return best


def _rows(weight: Tensor, axis: int | None) -> Tensor:
    """View a weight as `[channels, everything else]`."""
    if axis is None:
        return weight.reshape(1, -1)
    return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
