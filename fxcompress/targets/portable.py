"""Any runtime that reads quantized ONNX: standard operators only, and of the schemes the ones all know.

Pairs surround every operator that is quantized, as ONNX's own description of the format shows it, so that a
compiler for an accelerator finds integers on all sides. Activations are uint8 with one scale; weights of
convolutions have one scale per output channel, those of matrix products one for all, since many compilers
know no other; biases are int32; inputs of a concatenation have the scale of its output. No operator outside
ONNX's own domain is written.

Nothing is claimed about speed: the file is timed in ONNX Runtime as a stand-in, and the report says so.
"""

from __future__ import annotations

from types import MappingProxyType

from fxcompress.ops.quantization import Kind
from fxcompress.targets.target import PER_CHANNEL, Kernel, Scheme, Target

PER_TENSOR = Scheme("int8", symmetric=True)

KERNELS = MappingProxyType(
    {
        Kind.CONVOLUTION: Kernel("Conv", integer_bias=True),
        Kind.LINEAR: Kernel("Gemm", integer_bias=True, weights=PER_TENSOR),
        Kind.ADD: Kernel("Add"),
        Kind.CONCATENATE: Kernel("Concat", absorbs=False),
        Kind.AVERAGE: Kernel("AveragePool", absorbs=False),
        Kind.GLOBAL_AVERAGE: Kernel("GlobalAveragePool", absorbs=False),
        Kind.LAYOUT: Kernel("", absorbs=False),
    }
)

FLOAT_REASONS = MappingProxyType(
    {
        kind: "not every runtime has an integer kernel for it"
        for kind in Kind
        if kind not in KERNELS and kind is not Kind.RECTIFY
    }
    | {Kind.RECTIFY: "the rectifier could not be absorbed by the operator before it"}
)


def portable() -> Target:
    """Describe what quantized ONNX files have in common."""
    return Target(
        name="portable",
        channel_block=8,
        kernels=KERNELS,
        batched_linear=Kernel("MatMul", absorbs=False, weights=PER_TENSOR),
        float_reasons=FLOAT_REASONS,
        weights=PER_CHANNEL,
        integer_tables=True,
        requantizes_constants=True,  # ONNX Runtime is one of those that may read it
        shared_scales=frozenset({Kind.CONCATENATE}),
        evidence="the ONNX standard: QuantizeLinear and DequantizeLinear since opset 13",
    )
