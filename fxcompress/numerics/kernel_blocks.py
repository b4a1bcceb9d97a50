"""Weights of convolutions and linears in one shape, and the algebra that fusing them needs.

A weight becomes *blocks* ``[groups, out/groups, in/groups, *kernel]`` in float64, whatever its layout:

    rows      [out, in/groups, *kernel]     convolution, linear
    columns   [in, out]                     a matrix multiplied from the right
    mirrored  [in, out/groups, *kernel]     transposed convolution

With z = W x + b and channel vectors s and t,

    s * z + t            =  (s * W) x + (s * b + t)          s along the outputs
    W (s * x + t) + b    =  (W * s) x + (W t + b)            s along the inputs; W t sums over the kernel
    W2 (W1 x + b1) + b2  =  (W2 W1) x + (W2 b1 + b2)

All is computed in float64 and rounded once, to the dtype of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Layout = Literal["rows", "columns", "mirrored"]


def to_blocks(weight: Tensor, groups: int = 1, layout: Layout = "rows") -> Tensor:
    """A weight of ``layout`` as float64 blocks ``[groups, out/groups, in/groups, *kernel]``."""
    exact = weight.double()
    if layout == "columns":
        return exact.t().unsqueeze(0)
    blocks = exact.reshape(groups, exact.shape[0] // groups, *exact.shape[1:])
    return blocks.transpose(1, 2) if layout == "mirrored" else blocks


def from_blocks(blocks: Tensor, dtype: torch.dtype, layout: Layout = "rows") -> Tensor:
    """The inverse of `to_blocks`, contiguous and rounded to ``dtype``."""
    if layout == "columns":
        return blocks[0].t().to(dtype).contiguous()
    ordered = blocks.transpose(1, 2) if layout == "mirrored" else blocks
    return ordered.reshape(-1, *ordered.shape[2:]).to(dtype).contiguous()


def scale_outputs(blocks: Tensor, scale: Tensor) -> Tensor:
    """Blocks whose output channels are multiplied by ``scale``, of shape [out]."""
    return blocks * scale.reshape(*blocks.shape[:2], 1, *[1] * (blocks.dim() - 3))


def scale_inputs(blocks: Tensor, scale: Tensor) -> Tensor:
    """Blocks whose input channels are multiplied by ``scale``, of shape [in]."""
    return blocks * scale.reshape(blocks.shape[0], 1, blocks.shape[2], *[1] * (blocks.dim() - 3))


def pass_shift(blocks: Tensor, shift: Tensor) -> Tensor:
    """What a constant ``shift`` [in] of every input channel adds to each output channel: ``[out]``.

    Holds where every tap of the kernel meets an input: not at padded borders.
    """
    return scale_inputs(blocks, shift).flatten(2).sum(-1).reshape(-1)


def place_kernel(blocks: Tensor, size: Sequence[int], offset: Sequence[int]) -> Tensor:
    """A kernel within a larger one of zeros, its first tap at ``offset``; one number per spatial axis."""
    pads: list[int] = []
    for total, begin, own in reversed(list(zip(size, offset, blocks.shape[3:], strict=True))):
        pads += [begin, total - begin - own]
    return functional.pad(blocks, pads)


def identity_kernel(groups: int, width: int, rank: int, scale: Tensor | None = None) -> Tensor:
    """The kernel of one tap that returns its input: ``[groups, width, width, 1, ...]``.

    Args:
        groups: how many.
        width: channels per group.
        rank: spatial axes.
        scale: what each channel is multiplied by, ``[groups * width]``.
    """
    eye = torch.eye(width, dtype=torch.float64).expand(groups, width, width)
    blocks = eye.reshape(groups, width, width, *[1] * rank)
    return blocks if scale is None else scale_outputs(blocks, scale)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """One kernel for ``second`` after ``first``, both of one group, at least one of them of one tap.

    ``[1, mid, in, *k1]`` and ``[1, out, mid, *k2]`` make ``[1, out, in, *k]``, where k is the larger kernel.
    """
    left, right = (blocks[0].reshape(*blocks.shape[1:3], -1) for blocks in (second, first))
    taps = first.shape[3:] if left.shape[-1] == 1 else second.shape[3:]
    made = torch.einsum("omp,miq->oipq", left, right)
    return made.reshape(1, made.shape[0], made.shape[1], *taps)
