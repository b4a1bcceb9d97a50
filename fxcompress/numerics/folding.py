"""The algebra of folding a batch norm into the affine operator before it.

At inference a batch norm is an affine map per channel with constants:

    y = (z - mean) / sqrt(var + eps) * gamma + beta  =  scale * z + shift
    scale = gamma / sqrt(var + eps)                     shift = beta - mean * scale

and what comes before it is linear in its weight, z = W x + b, so

    y = (scale * W) x + (scale * b + shift)

with ``scale`` laid along the weight's output channels. It is computed in float64 and rounded once, to the
dtype of the weight; done in float32, the intermediate roundings alone would cost several units in the last
place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChannelAffine:
    """``y = scale * z + shift`` per channel; two float64 vectors of shape ``[channels]``."""

    scale: Tensor
    shift: Tensor


def batch_norm_as_affine(
    mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> ChannelAffine:
    """Return the affine map that a batch norm with running statistics computes.

    All vectors have shape ``[channels]``; ``gamma`` and ``beta`` are None for a norm without parameters (1
    and 0).
    """
    scale = (var.double() + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    return ChannelAffine(scale, shift)


def scale_rows(weight: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """Scale a weight along its output channels, which lie on ``axis`` in full.

    ``weight`` is ``[out, in/groups, *kernel]`` for a convolution (grouped too) and ``[out, in]`` for a
    linear, both with axis 0, or ``[in, out]`` for a matrix multiplied from the right, with axis 1.
    """
    shape = [1] * weight.dim()
    shape[axis] = scale.numel()
    return (weight.double() * scale.reshape(shape)).to(weight.dtype)


def scale_transposed(weight: Tensor, scale: Tensor, groups: int = 1) -> Tensor:
    """Scale the output channels of a transposed convolution, whose weight is ``[in, out/groups, *kernel]``.

    Input channel ``i`` belongs to group ``i // (in/groups)``, so output channel ``g * (out/groups) + j`` is
    column ``j`` of the rows of group ``g`` alone.
    """
    blocks = weight.double().reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    factors = scale.reshape(groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
    return (blocks * factors).reshape(weight.shape).to(weight.dtype)


def fold_bias(bias: Tensor | None, affine: ChannelAffine, dtype: torch.dtype) -> Tensor:
    """Return ``scale * bias + shift``, None counting as 0, as ``[channels]`` of ``dtype``."""
    if bias is None:
        return affine.shift.to(dtype)
    return (bias.double() * affine.scale + affine.shift).to(dtype)
