"""Space and channels changing places: pixels, patches, windows, grids, kernels that are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.nasty import Ideas
from tests.architectures.nasty_convolution import IMAGE, conv

SPACE = Ideas()
idea = SPACE.idea


@idea(lambda: {"stem": conv(3, 24), "mid": conv(6, 8), "head": conv(8, 3, 1)}, IMAGE, sizes=(6, 8))
def pixel_shuffle(m: Any, x: Tensor) -> Tensor:
    """Channels become space: blocks of four go together."""
    return m.head(F.relu(m.mid(F.relu(F.pixel_shuffle(m.stem(x), 2)))))


@idea(lambda: {"stem": conv(3, 6), "mid": conv(24, 8), "head": conv(8, 3, 1)}, IMAGE, sizes=(6, 8))
def pixel_unshuffle(m: Any, x: Tensor) -> Tensor:
    """Space becomes channels: each channel is four of the next layer's."""
    return m.head(F.relu(m.mid(F.pixel_unshuffle(F.relu(m.stem(x)), 2))))


@idea(lambda: {"stem": conv(3, 6), "mid": nn.Linear(24, 8), "head": nn.Linear(8, 3)}, IMAGE, sizes=(6, 8))
def space_to_depth_by_slices(m: Any, x: Tensor) -> Tensor:
    """Swin's merging, YOLO's focus: four strided pictures side by side."""
    x = F.relu(m.stem(x))
    parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return m.head(F.relu(m.mid(torch.cat(parts, 1).permute(0, 2, 3, 1))))


@idea(
    lambda: {
        "stem": conv(3, 6),
        "down": conv(6, 8, stride=2),
        "side": conv(6, 5, 1),
        "top": conv(8, 5, 1),
        "head": conv(5, 3),
    },
    IMAGE,
    sizes=(5, 6, 8),
)
def feature_pyramid(m: Any, x: Tensor) -> list[Tensor]:
    """The coarse map is upsampled onto the fine one; one head reads both."""
    fine = F.relu(m.stem(x))
    coarse = m.top(F.relu(m.down(fine)))
    merged = m.side(fine) + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    return [m.head(merged), m.head(coarse)]


@idea(lambda: {"stem": conv(3, 8), "mid": nn.Linear(8 * 4, 6), "head": nn.Linear(6, 3)}, IMAGE, sizes=(6, 8))
def adaptive_flatten(m: Any, x: Tensor) -> Tensor:
    """Two by two positions per channel reach the linear layer."""
    return m.head(F.relu(m.mid(F.adaptive_avg_pool2d(F.relu(m.stem(x)), 2).flatten(1))))


@idea(
    lambda: {"stem": conv(3, 8), "offset": conv(3, 2), "head": conv(8, 3, 1), "grid": torch.rand(1, 8, 8, 2)},
    IMAGE,
    sizes=(8,),
)
def sampled_at_offsets(m: Any, x: Tensor) -> Tensor:
    """Deformable in spirit: the picture is read where a convolution says."""
    grid = m.grid * 2 - 1 + 0.1 * torch.tanh(m.offset(x)).permute(0, 2, 3, 1)
    return m.head(F.grid_sample(F.relu(m.stem(x)), grid, align_corners=False))


@idea(
    lambda: {"stem": conv(3, 6), "patch": nn.Linear(6 * 4, 8), "head": nn.Linear(8, 3)}, IMAGE, sizes=(6, 8)
)
def unfolded_patches(m: Any, x: Tensor) -> Tensor:
    """im2col: each channel is four rows of a column."""
    patches = F.unfold(F.relu(m.stem(x)), 2, stride=2).transpose(1, 2)
    return m.head(F.relu(m.patch(patches)))


@idea(lambda: {"stem": conv(3, 6), "mix": nn.Linear(24, 32), "head": conv(8, 3, 1)}, IMAGE, sizes=(6, 8))
def folded_patches(m: Any, x: Tensor) -> Tensor:
    """Patches out, mixed, and put back by fold."""
    patches = F.unfold(F.relu(m.stem(x)), 2, stride=2).transpose(1, 2)
    mixed = F.relu(m.mix(patches)).transpose(1, 2)
    return m.head(F.fold(mixed, (8, 8), 2, stride=2))


@idea(
    lambda: {"stem": conv(3, 6), "patch": nn.Linear(6 * 4, 8), "head": nn.Linear(8, 3)}, IMAGE, sizes=(6, 8)
)
def sliding_windows(m: Any, x: Tensor) -> Tensor:
    """`Tensor.unfold` twice, then a reshape that puts channels before window positions."""
    windows = F.relu(m.stem(x)).unfold(2, 2, 2).unfold(3, 2, 2)
    return m.head(F.relu(m.patch(windows.permute(0, 2, 3, 1, 4, 5).flatten(3))))


@idea(lambda: {"stem": conv(3, 8), "kernel": nn.Linear(3, 8 * 9), "head": conv(8, 3, 1)}, IMAGE, sizes=(8,))
def dynamic_kernels(m: Any, x: Tensor) -> Tensor:
    """The kernel of a depthwise convolution is computed from the mean picture."""
    kernel = m.kernel(x.mean((0, 2, 3))).view(8, 1, 3, 3)
    return m.head(F.conv2d(F.relu(m.stem(x)), kernel, padding=1, groups=8))


@idea(
    lambda: {
        "stem": conv(3, 8),
        "sort": nn.MaxPool2d(2, return_indices=True),
        "mid": conv(8, 8),
        "head": conv(8, 3, 1),
    },
    IMAGE,
    sizes=(8,),
)
def unpooled(m: Any, x: Tensor) -> Tensor:
    """SegNet: values go back to where pooling found them."""
    x, places = m.sort(F.relu(m.stem(x)))
    return m.head(F.max_unpool2d(F.relu(m.mid(x)), places, 2))
