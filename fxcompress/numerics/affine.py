"""Affine quantization: real numbers as integers, ``x ~ (q - zero_point) * scale``.

Activations are *asymmetric* per tensor: 0..255 covers ``[low, high]``, and the real zero is an integer
exactly, since padding and ReLU produce it; for runtimes without zero points they are *symmetric*. Weights
are *symmetric* per output channel (or per tensor: axis None): zero point 0, integers ``-limit..limit``.
Biases are ``int32`` in units of ``input scale * weight scale``, so that an integer kernel adds them to its
accumulator as they are.

Scales are float32 numbers (a Python float here is one rounded to float32): a scale computed in float64 and
cut by whoever writes the file would move values across rounding boundaries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-100
"""Below this, the reciprocal that a kernel multiplies by, or the product of two scales, leaves the float32
range.
"""

BIAS_LIMIT = 2**30
"""Half of int32: the other half is left to the sum of products, 255 * 127 * 33 000 of them."""


@dataclass(frozen=True)
class Affine:
    """One scale and zero point for a whole tensor, with the integers it may use."""

    scale: float
    zero_point: int
    low: int = 0
    high: int = 255

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest real number that can be represented."""
        return (self.low - self.zero_point) * self.scale, (self.high - self.zero_point) * self.scale


def as_float32(value: float) -> float:
    """Round to the nearest float32."""
    return float(torch.tensor(value, dtype=torch.float32))


def asymmetric(low: float, high: float) -> Affine:
    """Cover ``[low, high]``, widened to contain zero, with the integers 0..255.

    Any value of the range comes back within half a scale, and zero exactly. A range of nothing but zero has
    scale 1; a constant tensor is an end of its range and so comes back to float32 precision.

    Raises:
        ValueError: the bounds are not finite or in the wrong order.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"[{low}, {high}] is not a range")
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return Affine(1.0, 0)
    scale = max(as_float32((high - low) / 255), SMALLEST_SCALE)
    return Affine(scale, min(max(round(-low / scale), 0), 255))


def symmetric(low: float, high: float) -> Affine:
    """Cover ``[low, high]`` with int8 around zero: zero point 0, the largest magnitude becomes 127.

    Raises:
        ValueError: the bounds are not finite or in the wrong order.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"[{low}, {high}] is not a range")
    largest = max(abs(low), abs(high))
    scale = max(as_float32(largest / 127), SMALLEST_SCALE) if largest > 0.0 else 1.0
    return Affine(scale, 0, -128, 127)


def quantize(x: Tensor, scheme: Affine) -> Tensor:
    """Real to integer (int8 where negative ones exist, else uint8), rounding halves to even, clamping."""
    whole = (torch.round(x / scheme.scale) + scheme.zero_point).clamp(scheme.low, scheme.high)
    return whole.to(torch.int8 if scheme.low < 0 else torch.uint8)


def dequantize(q: Tensor, scheme: Affine) -> Tensor:
    """Integer to real, in float32."""
    return (q.to(torch.float32) - scheme.zero_point) * scheme.scale


def channel_scales(weight: Tensor, axis: int | None, limit: int) -> Tensor:
    """Return the scale of each channel of ``weight`` along ``axis``: its largest magnitude becomes ``limit``.

    float32, shape ``[channels]``; ``[1]`` for the whole tensor, where the axis is None. A channel of zeros
    takes the largest scale among the others (1 when all are zero): its weights are exact with any, but its
    bias is stored in units of it.
    """
    largest = _per_channel(weight.detach(), axis).abs().amax(dim=1)
    scales = (largest.double() / limit).to(torch.float32)
    neutral = float(scales.max()) if bool(scales.max() > 0) else 1.0
    return torch.where(largest > 0, scales, neutral).clamp(min=SMALLEST_SCALE)


def fit_bias(scales: Tensor, bias: Tensor, input_scale: float) -> Tensor:
    """Raise the weight scales of the channels whose bias would not fit its integer.

    Such a bias outweighs every sum of products of its channel (:data:`BIAS_LIMIT`), so the weights lose
    precision that the output could not show.
    """
    needed = (bias.detach().double().abs() / (input_scale * BIAS_LIMIT)).to(torch.float32)
    return torch.maximum(scales, needed)


def quantize_channels(weight: Tensor, scales: Tensor, axis: int | None, limit: int) -> Tensor:
    """Weights to int8 in ``-limit..limit``, one scale for each channel along ``axis``, or one for all."""
    shape = _along(weight, axis)
    return torch.round(weight / scales.reshape(shape)).clamp(-limit, limit).to(torch.int8)


def bias_scales(input_scale: float, weight_scales: Tensor) -> Tensor:
    """Return the unit of each channel's bias: input scale times weight scale, in float32.

    ONNX Runtime leaves a convolution in float when the scale of its bias is anything else.
    """
    return torch.tensor(input_scale, dtype=torch.float32) * weight_scales


def quantize_bias(bias: Tensor, scales: Tensor) -> Tensor:
    """Bias to int32 in units of ``scales``; both ``[channels]``."""
    return torch.round(bias.double() / scales.double()).clamp(-(2**31), 2**31 - 1).to(torch.int32)


def _per_channel(weight: Tensor, axis: int | None) -> Tensor:
    """View a weight as ``[channels, everything else]``; one channel where the axis is None."""
    if axis is None:
        return weight.reshape(1, -1)
    return weight.movedim(axis, 0).flatten(1) if weight.dim() > 1 else weight.reshape(-1, 1)


def _along(weight: Tensor, axis: int | None) -> list[int]:
    """Return the shape that lays a vector along ``axis``, or one number over everything."""
    if axis is None:
        return [1] * weight.dim()
    return [weight.shape[i] if i == axis % weight.dim() else 1 for i in range(weight.dim())]
