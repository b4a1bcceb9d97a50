"""Fake quantization as modules whose numbers are fixed, in operators that can be traced."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, nn

integers = torch.ops.quantized_decomposed

BYTE = 255
"""The last of the integers that a runtime finds scales for."""

EPS = torch.finfo(torch.float32).eps
"""The smallest scale that observers find."""


class AtRunTime(nn.Module):
    """Fake quantization with one scale for each call."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The value of the nearest integer."""
        return at_its_own_scale(x, self.eps)


def at_its_own_scale(x: Tensor, eps: float = EPS) -> Tensor:
    """Quantized with the range that it has, and back.

    Integers from -128 on stand for the same numbers as those from 0 on, which is what runtimes have.
    """
    scale, zero = integers.choose_qparams.tensor(x, 0, BYTE, eps, torch.uint8)
    form = (scale, zero, 0, BYTE, torch.uint8)
    whole = integers.quantize_per_tensor.tensor(x, *form)
    return integers.dequantize_per_tensor.tensor(whole, *form)


class PerTensor(nn.Module):
    """Fake quantization with one scale.

    In operators on integers: those of fake quantization cannot be traced with sizes that vary (torch 2.13).
    """

    def __init__(self, scale: float, zero_point: int, bounds: tuple[int, int]) -> None:
        super().__init__()
        self.form = (scale, zero_point, *bounds, torch.int8 if bounds[0] < 0 else torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """The value of the nearest integer."""
        whole = integers.quantize_per_tensor.default(x, *self.form)
        return integers.dequantize_per_tensor.default(whole, *self.form)


class PerChannel(nn.Module):
    """Fake quantization with a scale for every channel."""

    def __init__(self, scale: Tensor, zero_point: Tensor, axis: int, bounds: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.form = (axis, *bounds, torch.int8 if bounds[0] < 0 else torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """The value of the nearest integer of each channel."""
        given = (self.scale, self.zero_point, *self.form)
        whole = integers.quantize_per_channel.default(x, *given)
        return integers.dequantize_per_channel.default(whole, *given)


class FloatZeros(nn.Module):
    """Fake quantization with a scale and a zero point that is no integer for every channel."""

    def __init__(self, scale: Tensor, zero_point: Tensor, axis: int, bounds: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.form = (axis, *bounds)

    def forward(self, x: Tensor) -> Tensor:
        """The value of the nearest integer of each channel."""
        scale, zero = self.get_buffer("scale"), self.get_buffer("zero_point")
        return torch.fake_quantize_per_channel_affine(x, scale, zero, *self.form)
