"""OpenVINO's CPU plugin, as seen in compiled models of version 2026.4 on an AVX-512 VNNI machine.

Its low-precision passes move a dequantization down through what follows, into the next convolution, so it
wants few pairs: at the inputs of weighted operators, none after layout, none between an operator and what
fuses into it. What was found by compiling one form at a time:

- convolutions (1-d to 3-d, grouped, depthwise; not transposed ones) and linears on any rank take u8
  activations with any zero point and i8 weights per channel, and hand out floats or, where a quantization
  follows, integers; activation functions, biases and the addition of a skip connection are part of them.
- average and maximum pooling, the mean over height and width, concatenation, addition and multiplication run
  in u8; reshapes, transposes, slices, nearest resizing and padding keep what they are given.
- a pair *after* such a layout costs a conversion to float and back (`Convert`, `FakeQuantize`).
- a sigmoid gate and hard-swish fuse into the convolution before them in float.
- without a dot-product instruction u8s8 saturates as in any x86 kernel: the weights get 7 bits.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from types import MappingProxyType

from fxcompress.ops.quantization import Kind
from fxcompress.targets.onnxruntime import cpu_features, variant_of
from fxcompress.targets.target import PER_CHANNEL, Kernel, Target

KERNELS = MappingProxyType(
    {
        Kind.CONVOLUTION: Kernel("Convolution", writes_integers=False),
        Kind.LINEAR: Kernel("FullyConnected", writes_integers=False),
        Kind.ADD: Kernel("Eltwise", writes_integers=False),
        Kind.MULTIPLY: Kernel("Eltwise", writes_integers=False),
        Kind.CONCATENATE: Kernel("Concatenation", writes_integers=False, absorbs=False),
        Kind.AVERAGE: Kernel("Pooling", writes_integers=False, absorbs=False),
        Kind.GLOBAL_AVERAGE: Kernel("Reduce", writes_integers=False, absorbs=False),
    }
)

FLOAT_REASONS = MappingProxyType(
    {
        Kind.TRANSPOSED: "the integer deconvolution takes no activation with a zero point",
        Kind.MATMUL: "both factors are activations: attention stays in the plugin's float kernel",
        Kind.ATTENTION: "attention stays in the plugin's float kernel",
        Kind.RECTIFY: "rectifiers fuse into the operator before them",
        Kind.SIGMOID: "it fuses into the operator before it, in float",
        Kind.GATE: "it fuses into the operator before it, in float",
        Kind.LEAKY: "it fuses into the operator before it, in float",
        Kind.PAD: "padding keeps what it is given",
        Kind.NORM: "normalisation has no integer kernel",
        Kind.SMOOTH: "no integer kernel",
    }
)


def openvino(features: AbstractSet[str] | None = None) -> Target:
    """Describe OpenVINO's CPU plugin for a CPU with these features (None: this machine's).

    OpenVINO itself is not needed to make files for it.
    """
    variant = variant_of(cpu_features() if features is None else features)
    return Target(
        name="openvino",
        channel_block=variant.channel_block,
        kernels=KERNELS,
        integer_tables=True,
        batched_linear=Kernel("FullyConnected", writes_integers=False, absorbs=False),
        float_reasons=FLOAT_REASONS,
        weights=replace(PER_CHANNEL, bits=variant.weight_bits),
        fuses_addition=True,
        repeats_pairs=False,
        requantizes_freely=True,
        features=(variant.name, *sorted(variant.needs)),
        runtime="openvino",
        evidence="measured: tests/targets/test_openvino.py compiles each form where OpenVINO is installed",
    )
