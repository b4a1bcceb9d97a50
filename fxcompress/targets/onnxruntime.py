"""ONNX Runtime's CPU provider, as measured with version 1.31 on an AVX-512 VNNI machine.

Activations are `uint8` asymmetric per tensor and weights `int8` symmetric per channel: other pairs have no
fast kernel on x86 (2.7 times slower). What was found by looking at optimised graphs, one operator at a
time:

- `Conv` fuses to `QLinearConv` (1-d, 2-d, 3-d, grouped, depthwise) only with a quantized output; a `Relu`
  or `Clip(0, c)` between them is absorbed when the output's zero point is 0 and its range ends at or below
  `c`. The scale of the bias must be input scale times weight scale; with another one everything stays in
  float.
- `Gemm` fuses to `QGemm` with or without a quantized output. A float bias without a quantized output
  prevents it.
- A linear on more dimensions is `MatMul` and `Add`. With a dynamic leading dimension it becomes
  `MatMulIntegerToFloat`, then a float `Add`, which needs a *float* bias; with static dimensions the runtime
  first rewrites the pair into `Reshape`, `Gemm`, `Reshape`, which needs an *int32* bias to become `QGemm`,
  and stays in float otherwise. The two forms take the same time (2.8 ms for 197 x 3072 x 768; float 12.9
  ms).
- `Add`, `Mul`, `Concat`, `Sigmoid`, `LeakyRelu`, `AveragePool`, `GlobalAveragePool` have `QLinear` kernels;
  `ReduceMean`, `HardSigmoid`, `HardSwish`, `Gelu`, `Tanh`, `Relu`, `Sub`, `Div`, `Pad`, bilinear `Resize`,
  `LayerNormalization` and `ConvTranspose` have none. A sigmoid gate (squeeze-excitation, SiLU written as
  `x * sigmoid(x)`) is faster in integers than in float inside an integer net (0.40 ms against 0.43 ms for 480
  channels at 14 x 14; float net 1.06 ms).
- A hard sigmoid is a scale, a shift and clamping, and so is quantization: `x` in steps of 3/128 around 128
  has the integers that `hardsigmoid(x)` has in steps of 1/256. So no kernel computes it: what makes `x`
  quantizes it in those steps, and its reader dequantizes it in the others. Where `x` is needed as well, a
  `LeakyRelu` of slope one between two pairs is the fastest way from one scale to another, a table
  (`QLinearLeakyRelu`). Hard-swish on 64 x 28 x 28: 53 us as DQ, HardSigmoid, Q, QLinearMul; 29 us so.
- `MaxPool`, `Reshape`, `Transpose`, `Slice`, `Split`, `Squeeze`, `Unsqueeze`, `Expand`, `Gather`,
  `DepthToSpace` and nearest `Resize` run on integers when the pair after them repeats the scale of the pair
  before them. `Split` needs a pair on every output. `Pad` runs on integers only when it is written so:
  between Q and DQ.
- A **float** `Conv`, `ConvTranspose` or `Gemm` between a DQ and a Q is quantized by the runtime itself, per
  tensor, without being asked (`WeightBiasQuantization`). A bias that comes out of a DQ node stops it, and
  with it the blocked layout of a convolution (MobileNetV3-large with 40 of 62 convolutions in float: 6.9 ms,
  of which 1.1 in five such `FusedConv`). A DQ whose scale is stated by channel stops it too, and costs
  nothing: 4.6 ms.
"""

from __future__ import annotations

import platform
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from fxcompress.ops.quantization import Kind
from fxcompress.targets.target import PER_CHANNEL, Kernel, Target

KERNELS = MappingProxyType(
    {
        Kind.CONVOLUTION: Kernel("QLinearConv", integer_bias=True),
        Kind.LINEAR: Kernel("QGemm", writes_integers=False, integer_bias=True),
        Kind.ADD: Kernel("QLinearAdd"),
        Kind.MULTIPLY: Kernel("QLinearMul"),
        Kind.CONCATENATE: Kernel("QLinearConcat"),
        Kind.AVERAGE: Kernel("QLinearAveragePool"),
        Kind.GLOBAL_AVERAGE: Kernel("QLinearGlobalAveragePool", absorbs=False),
        Kind.SIGMOID: Kernel("QLinearSigmoid", absorbs=False),
        Kind.LEAKY: Kernel("QLinearLeakyRelu", absorbs=False),
        Kind.GATE: Kernel("QLinearMul", absorbs=False),
        Kind.HARD_SIGMOID: Kernel("QLinearLeakyRelu", absorbs=False),
        Kind.PAD: Kernel("Pad", absorbs=False),
        Kind.LAYOUT: Kernel("", absorbs=False),
    }
)

BATCHED_LINEAR = Kernel(
    "MatMulIntegerToFloat", writes_integers=False, absorbs=False, quantized_name="QLinearMatMul"
)
"""A product with a stored matrix, or a linear on tokens, where a dimension is dynamic or there is no bias."""

NARROWEST_GROUP = 16
"""Grouped convolutions between int8 ones, in ms: all float, only the grouped one in float, all int8.

4 channels per group (128 channels at 28 x 28): 0.89, 0.62, 1.30; 8 (256 at 28 x 28): 3.16, 1.85, 2.15; 16
(256 at 28 x 28): 2.67, 2.05, 1.42; 32 (256 at 14 x 14): 0.88, 0.74, 0.36; depthwise (240 at 14 x 14): 0.51,
0.38, 0.19.
"""

FLOAT_REASONS = MappingProxyType(
    {
        Kind.TRANSPOSED: "ConvTranspose has no integer kernel",
        Kind.MATMUL: "both factors are activations (u8u8 has no fast kernel)",
        Kind.ATTENTION: "attention has no integer kernel",
        Kind.RECTIFY: "the rectifier could not be absorbed by the operator before it",
        Kind.NORM: "normalisation has no integer kernel",
        Kind.SMOOTH: "no integer kernel",
    }
)


@dataclass(frozen=True)
class Variant:
    """What the CPU decides: needed feature flags, floats per channel block, usable bits of a weight."""

    name: str
    needs: frozenset[str]
    channel_block: int
    weight_bits: int


VARIANTS = (
    Variant("amx", frozenset({"amx_int8", "avx512f"}), 16, 8),
    Variant("avx512-vnni", frozenset({"avx512f", "avx512_vnni"}), 16, 8),
    Variant("avx512-avx-vnni", frozenset({"avx512f", "avx_vnni"}), 16, 8),
    Variant("avx512", frozenset({"avx512f"}), 16, 7),
    Variant("avx-vnni", frozenset({"avx_vnni"}), 8, 8),
    Variant("arm-dot-product", frozenset({"aarch64", "asimddp"}), 8, 8),
    Variant("arm", frozenset({"aarch64"}), 8, 8),
    Variant("avx2", frozenset(), 8, 7),
)
"""Best first; the last is for x86 without a dot product, and for what is not known.

Without a dot-product instruction the u8s8 kernels of x86 add pairs of products in 16 bits, and 2 * 255 * 127
saturates: the weights get 7 bits. Arm widens every product (`smlal`), with `sdot` or without.
"""


def onnxruntime(features: AbstractSet[str] | None = None) -> Target:
    """Describe ONNX Runtime's CPU provider for a CPU with these features (None: this machine's)."""
    variant = variant_of(cpu_features() if features is None else features)
    return Target(
        name="onnxruntime",
        channel_block=variant.channel_block,
        kernels=KERNELS,
        batched_linear=BATCHED_LINEAR,
        float_reasons=FLOAT_REASONS,
        weights=replace(PER_CHANNEL, bits=variant.weight_bits),
        narrowest_group=NARROWEST_GROUP,
        requantizes_constants=True,
        integer_tables=True,
        domains=frozenset({"com.microsoft"}),
        forms=frozenset({"multi-head-attention", "space-to-depth"}),
        features=(variant.name, *sorted(variant.needs)),
        runtime="onnxruntime",
        evidence="measured on AVX-512 VNNI, each claim shown in the installed runtime by "
        "tests/targets/test_conformance.py; other CPUs differ in channel blocks and bits of weights",
    )


def variant_of(features: AbstractSet[str]) -> Variant:
    """Return the best variant whose features a CPU has."""
    return next(variant for variant in VARIANTS if variant.needs <= features)


def cpu_features() -> frozenset[str]:
    """Return the CPU's feature flags and machine name; flags are unknown (none) where there is no
    /proc/cpuinfo.
    """
    machine = {"arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    info = Path("/proc/cpuinfo")
    flags: set[str] = {machine}
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags.update(line.partition(":")[2].split())
                break
    return frozenset(flags)
