"""One model for each form of an operator, with the integer kernels that ONNX Runtime must run it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.ops.quantization import Kind
from tests.passes.models import Apply, Chain

IMAGE = (3, 16, 8, 8)


@dataclass(frozen=True)
class Form:
    """A model and the integer kernels its plan must intend, and the runtime execute."""

    name: str
    build: Callable[[], nn.Module]
    kernels: dict[str, int]
    shape: tuple[int, ...] = IMAGE
    bridges: int | None = None
    """How many quantize and dequantize operators the runtime is left with, where that is the point."""


def conv(i: int = 16, o: int = 16, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def around(function: Callable[[Tensor], Tensor], channels: int = 16) -> Callable[[], nn.Module]:
    """Something between two convolutions."""
    return lambda: Apply(lambda m, x: m.d(function(m.c(x))), c=conv(), d=conv(channels, 8, 1))


def head(function: Callable[[Tensor], Tensor], features: int) -> Callable[[], nn.Module]:
    """Something between a convolution and a linear."""
    return lambda: Apply(lambda m, x: m.l(function(torch.relu(m.c(x)))), c=conv(), l=nn.Linear(features, 4))


def squeeze_excitation() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(m.c(x))
        s = torch.sigmoid(m.e(torch.relu(m.s(F.adaptive_avg_pool2d(y, 1)))))
        return m.d(y * s)

    return Apply(forward, c=conv(), s=conv(16, 4, 1), e=conv(4, 16, 1), d=conv())


def pair(function: Callable[[Tensor, Tensor], Tensor], channels: int = 16) -> Callable[[], nn.Module]:
    """Something on two convolutions, then a third."""
    return lambda: Apply(
        lambda m, x: m.e(function(m.c(x), torch.relu(m.d(x)))), c=conv(), d=conv(), e=conv(channels)
    )


TWO = {"QLinearConv": 2}
HEAD = {"QLinearConv": 1, "QGemm": 1}
POOL = {"QLinearGlobalAveragePool": 1}

FORMS = (
    Form("conv", conv, {"QLinearConv": 1}, bridges=2),
    Form("conv_no_bias", lambda: conv(bias=False), {"QLinearConv": 1}, bridges=2),
    Form("conv_relu", around(torch.relu), TWO, bridges=2),
    Form("conv_relu6", around(F.relu6), TWO, bridges=2),
    Form("conv_clamp", around(lambda x: x.clamp(0.0, 0.7)), TWO, bridges=2),
    Form("depthwise", lambda: Chain(c=conv(groups=16), d=conv()), TWO, bridges=2),
    Form("grouped", lambda: Chain(c=conv(64, 64, groups=4), d=conv(64)), TWO, (2, 64, 6, 6), bridges=2),
    Form("conv1d", lambda: nn.Conv1d(16, 8, 3, padding="same"), {"QLinearConv": 1}, (2, 16, 9), bridges=2),
    Form("conv3d", lambda: nn.Conv3d(4, 8, 3), {"QLinearConv": 1}, (2, 4, 5, 6, 7), bridges=2),
    Form("residual", pair(lambda a, b: torch.relu(a + b)), {"QLinearConv": 3, "QLinearAdd": 1}, bridges=2),
    Form("product", pair(lambda a, b: a * b), {"QLinearConv": 3, "QLinearMul": 1}, bridges=2),
    Form(
        "concat",
        pair(lambda a, b: torch.cat([a, b], 1), 32),
        {"QLinearConv": 3, "QLinearConcat": 1},
        bridges=2,
    ),
    Form(
        "concat_negative_axis",
        pair(lambda a, b: torch.cat([a, b], -3), 32),
        {"QLinearConv": 3, "QLinearConcat": 1},
        bridges=2,
    ),
    Form(
        "squeeze_excitation",
        squeeze_excitation,
        {"QLinearConv": 4, "QLinearGlobalAveragePool": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
        bridges=2,
    ),
    Form("silu", around(F.silu), TWO | {"QLinearMul": 1, "QLinearSigmoid": 1}, bridges=2),
    Form("hardswish", around(F.hardswish), TWO | {"QLinearMul": 1, "QLinearLeakyRelu": 1}, bridges=2),
    Form("hardsigmoid", around(F.hardsigmoid), TWO, bridges=2),
    Form(
        "hardsigmoid_gate",
        around(lambda x: x * F.hardsigmoid(x)),
        TWO | {"QLinearMul": 1, "QLinearLeakyRelu": 1},
        bridges=2,
    ),
    Form("leaky_relu", around(lambda x: F.leaky_relu(x, 0.1)), TWO | {"QLinearLeakyRelu": 1}, bridges=2),
    Form("average_pool", around(lambda x: F.avg_pool2d(x, 2)), TWO | {"QLinearAveragePool": 1}, bridges=2),
    Form(
        "average_pool_padded",
        around(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
        TWO | {"QLinearAveragePool": 1},
        bridges=2,
    ),
    Form("max_pool", around(lambda x: F.max_pool2d(torch.relu(x), 3, 2, 1)), TWO, bridges=2),
    Form("adaptive_head", head(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), 16), HEAD | POOL, bridges=1),
    Form("mean_head", head(lambda x: x.mean((2, 3)), 16), HEAD | POOL, bridges=1),
    Form("mean_negative", head(lambda x: x.mean((-1, -2)), 16), HEAD | POOL),
    Form("flatten_head", head(lambda x: x.flatten(1), 1024), HEAD, bridges=1),
    Form("pad_channels", around(lambda x: F.pad(x, (0, 0, 0, 0, 4, 4)), 24), TWO | {"Pad": 1}, bridges=2),
    Form("pixel_shuffle", around(lambda x: F.pixel_shuffle(x, 2), 4), TWO, bridges=2),
    Form("channel_shuffle", around(lambda x: F.channel_shuffle(x, 4)), TWO, bridges=2),
    Form(
        "shuffle_by_hand",
        around(lambda x: x.reshape(-1, 4, 4, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)),
        TWO,
        bridges=2,
    ),
    Form("nearest", around(lambda x: F.interpolate(x, scale_factor=2, mode="nearest")), TWO, bridges=2),
    Form("slice", around(lambda x: x[:, 4:12], 8), TWO, bridges=2),
    Form("chunk", around(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), TWO | {"QLinearConcat": 1}, bridges=2),
    Form("stride_by_slice", around(lambda x: x[:, :, ::2, ::2]), TWO, bridges=2),
    Form(
        "linear_chain",
        lambda: Chain(l=nn.Linear(12, 20), r=nn.ReLU(), m=nn.Linear(20, 4)),
        {"QGemm": 2},
        (5, 12),
        bridges=1,
    ),
    Form("linear_no_bias", lambda: nn.Linear(12, 8, bias=False), {"QGemm": 1}, (5, 12), bridges=1),
    Form(
        "tokens_no_bias_chain",
        lambda: Chain(l=nn.Linear(12, 8, bias=False), m=nn.Linear(8, 3)),
        {"QLinearMatMul": 1, "MatMulIntegerToFloat": 1},
        (2, 5, 12),
        bridges=1,
    ),
    Form(
        "tokens",
        lambda: Chain(n=nn.LayerNorm(12), l=nn.Linear(12, 24), g=nn.GELU(), m=nn.Linear(24, 12)),
        {"MatMulIntegerToFloat": 2},
        (2, 5, 12),
        bridges=2,
    ),
    Form(
        "static_tokens",
        lambda: Apply(lambda m, x: m.l(x.reshape(2, 5, 12)), l=nn.Linear(12, 24)),
        {"QGemm": 1},
        (2, 5, 12),
        bridges=1,
    ),
    Form(
        "addmm",
        lambda: Apply(lambda m, x: torch.addmm(m.b, x, m.w), w=torch.randn(12, 7), b=torch.randn(7)),
        {"QGemm": 1},
        (5, 12),
        bridges=1,
    ),
    Form(
        "matmul",
        lambda: Apply(lambda m, x: x @ m.w, w=torch.randn(12, 7)),
        {"MatMulIntegerToFloat": 1},
        (2, 5, 12),
    ),
    Form(
        "matmul_rows",
        lambda: Apply(lambda m, x: (x @ m.w) @ m.v, w=torch.randn(12, 7), v=torch.randn(7, 5)),
        {"QLinearMatMul": 1, "MatMulIntegerToFloat": 1},
        (5, 12),
        bridges=1,
    ),
)

KIND_FORMS: Mapping[Kind, str] = {
    Kind.CONVOLUTION: "conv_relu",
    Kind.LINEAR: "linear_chain",
    Kind.ADD: "residual",
    Kind.MULTIPLY: "product",
    Kind.CONCATENATE: "concat",
    Kind.AVERAGE: "average_pool",
    Kind.GLOBAL_AVERAGE: "mean_head",
    Kind.SIGMOID: "squeeze_excitation",
    Kind.LEAKY: "leaky_relu",
    Kind.GATE: "silu",
    Kind.HARD_SIGMOID: "hardsigmoid_gate",
    Kind.PAD: "pad_channels",
    Kind.LAYOUT: "max_pool",
}
"""The form that shows the integer kernel of a kind."""


def form(name: str) -> Form:
    return next(item for item in FORMS if item.name == name)
