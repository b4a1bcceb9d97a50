"""What a runtime can do, as data that plans are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxcompress.ops.quantization import Kind


@dataclass(frozen=True)
class Kernel:
    """An integer kernel.

    Args:
        name: the operator that the runtime's optimised graph shows.
        writes_integers: the kernel exists only with a quantized output; else it can hand out floats, and
            its output is quantized only for readers that want integers.
        absorbs: a rectifier that follows is part of the kernel, since the output's range ends where it
            would clamp.
        integer_bias: the bias is added to the integer accumulator and must be int32; else it stays in float.
        quantized_name: what it is called where its output is quantized, if that differs.
    """

    name: str
    writes_integers: bool = True
    absorbs: bool = True
    integer_bias: bool = False
    quantized_name: str | None = None


@dataclass(frozen=True)
class Target:
    """A runtime on this machine.

    Args:
        name: how a user asks for it.
        channel_block: channels are processed in blocks of this many; narrower ones cost as much.
        weight_bits: bits that an int8 weight may use before a kernel's intermediate sums saturate.
        kernels: the kinds of operator that have an integer kernel.
        batched_linear: the kernel of a linear that is lowered to a matrix product and an addition.
        float_reasons: why the other kinds stay in float.
        narrowest_group: grouped convolutions with fewer input channels per group are faster in float
            (depthwise, one channel per group, is a kernel of its own and not meant).
        requantizes_constants: the runtime quantizes the float weight of a convolution or Gemm by itself
            when it stands between a dequantize and a quantize node; a plan must prevent that where it means
            float.
    """

    name: str
    channel_block: int
    weight_bits: int
    kernels: Mapping[Kind, Kernel]
    batched_linear: Kernel
    float_reasons: Mapping[Kind, str]
    narrowest_group: int = 0
    requantizes_constants: bool = False

    @property
    def weight_limit(self) -> int:
        """The largest magnitude of a stored weight: 127 with 8 bits, 64 with 7."""
        return 127 if self.weight_bits == 8 else 2 ** (self.weight_bits - 1)
