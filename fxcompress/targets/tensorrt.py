"""TensorRT 8.5 and newer, from its documentation: explicit quantization by Q/DQ. No GPU was at hand.

What "Quantized Types" and "Explicit Quantization" of the developer guide ask for, and how it is said here:

- integers are int8 and symmetric, the zero point is 0, activations have one scale and weights one per output
  channel: `activations`, `weights`. Stored int8 weights behind a DQ are read as they are.
- quantize the inputs of weighted operators, not their outputs: `writes_integers=False`. Batch norms and
  rectifiers fuse into them by themselves.
- do not quantize biases: `integer_bias=False`.
- in a skip connection the addition becomes part of the convolution before it, on the float accumulator: the
  other branch alone is quantized: `fuses_addition`.
- TensorRT moves Q and DQ through layout (pooling of maxima, reshapes, transposes) by itself; a second pair
  after it would only be in the way: `repeats_pairs=False`.
- grouped convolutions want multiples of 4 channels per group; tensor cores take blocks of 32.
"""

from __future__ import annotations

from types import MappingProxyType

from fxcompress.ops.quantization import Kind
from fxcompress.targets.target import PER_CHANNEL, SYMMETRIC, Kernel, Target

KERNELS = MappingProxyType(
    {
        Kind.CONVOLUTION: Kernel("Conv", writes_integers=False),
        Kind.TRANSPOSED: Kernel("ConvTranspose", writes_integers=False),
        Kind.LINEAR: Kernel("Gemm", writes_integers=False),
        Kind.ADD: Kernel("Add", writes_integers=False),
        Kind.AVERAGE: Kernel("AveragePool", writes_integers=False, absorbs=False),
    }
)

FLOAT_REASONS = MappingProxyType(
    {
        Kind.MATMUL: "TensorRT fuses attention in half precision: integers would break its kernel",
        Kind.ATTENTION: "TensorRT fuses attention in half precision: integers would break its kernel",
        Kind.MULTIPLY: "a gate fuses with its neighbours in half precision",
        Kind.CONCATENATE: "TensorRT moves the quantization of the result before the concatenation by itself",
        Kind.GLOBAL_AVERAGE: "reductions have no int8 kernel",
        Kind.RECTIFY: "rectifiers fuse into the operator before them",
        Kind.SIGMOID: "TensorRT fuses it into its neighbours",
        Kind.GATE: "TensorRT fuses it into its neighbours",
        Kind.LEAKY: "TensorRT fuses it into the operator before it",
        Kind.PAD: "TensorRT fuses padding into the convolution after it",
        Kind.NORM: "normalisation has no integer kernel",
        Kind.SMOOTH: "no integer kernel",
        Kind.LOOKUP: "tables are left in float",
    }
)


def tensorrt() -> Target:
    """Describe TensorRT on a GPU with int8 tensor cores."""
    return Target(
        name="tensorrt",
        channel_block=32,
        kernels=KERNELS,
        batched_linear=Kernel("MatMul", writes_integers=False, absorbs=False),
        float_reasons=FLOAT_REASONS,
        activations=SYMMETRIC,
        weights=PER_CHANNEL,
        narrowest_group=4,
        fuses_addition=True,
        repeats_pairs=False,
        requantizes_freely=True,
        refused={"int8-dynamic": "TensorRT reads no DynamicQuantizeLinear"},
        features=("int8 tensor cores",),
        evidence="developer guide, explicit quantization; files are checked against it, no GPU ran them",
    )
