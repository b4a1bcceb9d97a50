"""Kernel models run and are timed by the profiler; what is known is not measured again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fxcompress.errors import NotSupported
from fxcompress.runtime.conversion_times import SIZES, STEPS, ConversionTimes, conversion
from fxcompress.runtime.kernel_cache import KernelCache
from fxcompress.runtime.kernel_models import Kernel, model_of
from fxcompress.runtime.kernel_times import KernelTimes, fastest_nodes, profiled, time_kernel
from fxcompress.runtime.session import SessionError, open_session, run

CONVOLUTION = Kernel(
    "Conv", ((1, 16, 8, 8),), ((32, 16, 3, 3), (32,)), (("kernel_shape", (3, 3)), ("pads", (1, 1, 1, 1)))
)
KERNELS = [
    CONVOLUTION,
    Kernel("Conv", ((1, 16, 8, 8),), ((16, 1, 3, 3),), (("group", 16),)),
    Kernel("Gemm", ((2, 16),), ((8, 16), (8,)), (("transB", 1),)),
    Kernel("MatMul", ((2, 5, 16),), ((16, 8),)),
    Kernel("Attention", ((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 6))),
    Kernel("Add", ((1, 16, 8, 8), (1, 16, 8, 8))),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.operator)
def test_kernel_models_run(kernel: Kernel) -> None:
    content, feeds = model_of(kernel)
    (result,) = run(open_session(content), feeds).values()
    assert result.size


def test_attention_has_the_shape_of_its_values() -> None:
    content, feeds = model_of(KERNELS[4])
    assert run(open_session(content), feeds)["y"].shape == (2, 4, 5, 6)


def test_layout_changes_do_not_count() -> None:
    content, feeds = model_of(CONVOLUTION)
    assert 0 < time_kernel(CONVOLUTION) < 50
    assert profiled(content, feeds) > 0


def test_a_kernel_that_does_not_exist_is_a_typed_error() -> None:
    with pytest.raises(SessionError, match="does not run"):
        time_kernel(Kernel("NoSuchOperator", ((1,),)))
    with pytest.raises(NotSupported, match="float32, int8"):
        model_of(Kernel("Relu", ((1,),), precision="float8"))


def test_equal_kernels_have_equal_keys() -> None:
    assert CONVOLUTION.key == Kernel(**vars(CONVOLUTION)).key
    assert len({kernel.key for kernel in KERNELS}) == len(KERNELS)
    assert Kernel("Relu", ((1,),)).key != Kernel("Relu", ((1,),), precision="int8").key


class Clock:
    """A timer that counts its calls."""

    def __init__(self) -> None:
        self.calls: list[Kernel] = []

    def __call__(self, kernel: Kernel, threads: int) -> float:
        self.calls.append(kernel)
        return 0.25 * threads


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    clock = Clock()
    times = KernelTimes(KernelCache(tmp_path), threads=2, timer=clock)
    assert times.ms(CONVOLUTION) == times.ms(CONVOLUTION) == 0.5
    times.save()
    again = KernelTimes(KernelCache(tmp_path), threads=2, timer=clock)
    assert again.ms(CONVOLUTION) == 0.5
    assert len(clock.calls) == 1
    one = KernelTimes(KernelCache(tmp_path), threads=1, timer=clock)
    assert one.ms(CONVOLUTION) == 0.25
    assert len(clock.calls) == 2


def test_measuring_ends_when_its_time_is_spent(tmp_path: Path) -> None:
    times = KernelTimes(KernelCache(tmp_path), timer=Clock(), seconds=0.0)
    assert times.ms(CONVOLUTION) is None
    assert "stopped" in times.notes[0]


PIXELS = ((1, 16, 8, 8),)
INTEGER_KERNELS = [
    (replace(CONVOLUTION, activation="Relu"), "QLinearConv"),
    (replace(CONVOLUTION, activation="Clip"), "QLinearConv"),
    (Kernel("Conv", ((1, 16, 8, 8),), ((16, 1, 3, 3),), (("group", 16),)), "QLinearConv"),
    (Kernel("Gemm", ((2, 16),), ((8, 16), (8,)), (("transB", 1),)), "QGemm"),
    (Kernel("MatMul", ((2, 5, 16),), ((16, 8),)), "QLinearMatMul"),
    (Kernel("Add", PIXELS * 2), "QLinearAdd"),
    (Kernel("Mul", (*PIXELS, (1, 16, 1, 1))), "QLinearMul"),
    (Kernel("Concat", PIXELS * 2, (), (("axis", 1),)), "QLinearConcat"),
    (Kernel("Sigmoid", PIXELS), "QLinearSigmoid"),
    (Kernel("LeakyRelu", PIXELS, (), (("alpha", 1.0),)), "QLinearLeakyRelu"),
    (Kernel("GlobalAveragePool", PIXELS), "QLinearGlobalAveragePool"),
    (Kernel("AveragePool", PIXELS, (), (("kernel_shape", (2, 2)),)), "QLinearAveragePool"),
    (Kernel("Gate", PIXELS, activation="Sigmoid"), "QLinearMul"),
]


@pytest.mark.parametrize(
    ("kernel", "shown"), INTEGER_KERNELS, ids=lambda item: getattr(item, "operator", item)
)
def test_integer_models_run_integer_kernels_and_nothing_else_counts(kernel: Kernel, shown: str) -> None:
    content, feeds = model_of(replace(kernel, precision="int8"))
    operators = {operator for _, operator, _ in fastest_nodes(content, feeds)}
    assert shown in operators
    assert not operators & {"QuantizeLinear", "DequantizeLinear", kernel.operator}


def test_an_integer_product_may_hand_out_floats() -> None:
    kernel = Kernel("MatMul", ((2, 5, 16),), ((16, 8),), precision="int8>float32")
    content, feeds = model_of(kernel)
    assert {operator for _, operator, _ in fastest_nodes(content, feeds)} == {"MatMulIntegerToFloat"}
    assert run(open_session(content), feeds)["y"].dtype == "float32"


def test_an_operator_without_an_integer_kernel_counts_with_its_conversions() -> None:
    content, feeds = model_of(Kernel("HardSigmoid", ((2, 64),), precision="int8"))
    operators = {operator for _, operator, _ in fastest_nodes(content, feeds)}
    assert operators == {"DequantizeLinear", "HardSigmoid", "QuantizeLinear"}


def test_hard_swish_is_folded_into_a_float_convolution() -> None:
    content, feeds = model_of(replace(CONVOLUTION, activation="HardSwish"))
    operators = {operator for _, operator, _ in fastest_nodes(content, feeds)}
    assert operators <= {"Conv", "GlobalAveragePool", "ReorderInput", "ReorderOutput"}


@pytest.mark.parametrize("step", STEPS)
def test_conversions_run_alone_and_are_measured_at_few_sizes(step: str, tmp_path: Path) -> None:
    content, feeds = model_of(conversion(step, SIZES[1]))
    assert step in {operator for _, operator, _ in fastest_nodes(content, feeds)}
    asked: list[int] = []

    def linear(kernel: Kernel, threads: int) -> float:
        asked.append(math.prod(kernel.inputs[0]))
        return math.prod(kernel.inputs[0]) / 1e6

    times = ConversionTimes(KernelTimes(KernelCache(tmp_path), timer=linear))
    for size in (300, 5000, 70_000, 5000):
        assert times.ms(step, size) == pytest.approx(size / 1e6, rel=1e-6), "a power law is met exactly"
    assert times.ms(step, 1) == times.ms(step, SIZES[0])
    assert times.ms(step, 4 * SIZES[-1]) == pytest.approx(4 * SIZES[-1] / 1e6)
    assert sorted(asked) == sorted(set(asked))
    assert set(asked) <= set(SIZES)


def test_the_price_of_a_conversion_does_not_wait_for_a_budget_that_is_spent(tmp_path: Path) -> None:
    times = KernelTimes(KernelCache(tmp_path), seconds=0.0)
    assert 0 < ConversionTimes(times).ms("QuantizeLinear", 1000) < 1
