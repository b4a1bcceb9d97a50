"""Convolution as a matrix product: which inputs each output position reads. Pure functions on tensors.

A transposed convolution is a plain one with a mirrored kernel over an input with zeros between its entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], places: Tensor
) -> Tensor:
    """What a convolution reads at some output positions.

    Args:
        x: the padded input, `[samples, channels, *spatial]`.
        kernel, stride, dilation: one number per spatial dimension.
        places: output positions, as row-major numbers over the output's spatial dimensions.

    Returns:
        `[samples, places, channels, *kernel]`; only the positions asked for are copied.
    """
    sizes = [
        (size - (width - 1) * apart - 1) // step + 1
        for size, width, step, apart in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    result = x.permute(0, *range(2, x.dim()), 1)
    corner = torch.unravel_index(places, sizes)
    index: list[Tensor] = []
    rank = len(sizes)
    for axis, (width, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True)):
        offsets = (torch.arange(width) * apart).reshape([-1 if place == axis else 1 for place in range(rank)])
        index.append(corner[axis].reshape(-1, *[1] * rank) * step + offsets)
    every: tuple[slice | Tensor, ...] = (slice(None), *index)
    return result[every].movedim(-1, 2)


def padded(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Zeros around the spatial dimensions (cropped where negative), given per dimension."""
    pads = [number for pair in reversed(list(zip(before, after, strict=True))) for number in pair]
    return F.pad(x, pads)


def spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Zeros between the entries of the spatial dimensions, `stride - 1` of them."""
    if all(step == 1 for step in stride):
        return x
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    result = x.new_zeros(*x.shape[:2], *sizes)
    entries: tuple[slice, ...] = (slice(None), slice(None), *(slice(None, None, step) for step in stride))
    result[entries] = x
    return result
