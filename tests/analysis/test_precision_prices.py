"""Prices by an invented timer: what is one vertex, what crosses, and what layouts add."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.analysis.precision_prices import PrecisionPrices, Vertex, precision_prices
from fxcompress.graph.capture import capture
from fxcompress.plan.quantization import capable_operators
from fxcompress.runtime.kernel_cache import KernelCache
from fxcompress.runtime.kernel_models import Kernel
from fxcompress.runtime.kernel_times import KernelTimes
from fxcompress.runtime.session import SessionError
from tests.passes.models import Apply, Chain
from tests.plan.quantized import VNNI

IMAGE = (torch.randn(2, 16, 8, 8),)
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput")


class Invented:
    """Float kernels take 1 ms, integer ones 0.25, conversions and layouts powers of ten below."""

    def __init__(self) -> None:
        self.seen: list[Kernel] = []

    def __call__(self, kernel: Kernel, threads: int) -> float:
        self.seen.append(kernel)
        if kernel.operator in CONVERSIONS:
            return 10.0 ** -(2 + CONVERSIONS.index(kernel.operator))
        if kernel.operator == "Transpose" and kernel.precision == "int8":
            return 1e-6
        return 1.0 if kernel.precision == "float32" else 0.25


def priced(model: nn.Module, example: Any, folder: Path, timer: Any = None) -> PrecisionPrices:
    program = capture(model.eval(), example)
    times = KernelTimes(KernelCache(folder), timer=timer or Invented())
    return precision_prices(program, capable_operators(program, VNNI), times)


def by_name(prices: PrecisionPrices) -> dict[str, Any]:
    return {vertex.name: vertex for vertex in prices.vertices}


def conv(i: int = 16, o: int = 16, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def test_what_a_kernel_absorbs_is_part_of_its_vertex(tmp_path: Path) -> None:
    prices = priced(Chain(c=conv(), r=nn.ReLU(), p=nn.MaxPool2d(2), d=conv()), IMAGE, tmp_path)
    found = by_name(prices)
    assert found["conv2d"].operators == ("conv2d", "relu", "max_pool2d")
    assert found["conv2d"].float_ms == pytest.approx(2.0, abs=0.01)
    assert found["conv2d"].int8_ms == pytest.approx(0.5, abs=0.01)
    assert [item.name for item in prices.crossings] == ["x", "max_pool2d", "conv2d_1"]


def test_the_runtimes_own_fusions_are_one_vertex(tmp_path: Path) -> None:
    timer = Invented()
    prices = priced(Chain(c=conv(), h=nn.Hardswish(), d=conv()), IMAGE, tmp_path, timer)
    found = by_name(prices)["conv2d"]
    assert found.operators == ("conv2d", "hardswish")
    assert found.float_ms == pytest.approx(1.0, abs=0.02), "hard-swish is part of the float convolution"
    assert found.int8_ms == pytest.approx(0.75), "the convolution, a table and a product"
    assert "HardSwish" in {kernel.activation for kernel in timer.seen}


def test_parts_of_a_split_belong_to_what_is_split(tmp_path: Path) -> None:
    """Else each part is a float vertex of its own, and integers seem to cost a conversion each."""

    def halves(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        left, right = m.c(x).chunk(2, 1)
        return m.d(torch.cat([right, left], 1))

    found = by_name(priced(Apply(halves, c=conv(), d=conv()), IMAGE, tmp_path))
    assert found["conv2d"].operators == ("conv2d", "getitem", "getitem_1")
    assert math.isfinite(found["conv2d"].int8_ms)
    assert not any(name.startswith("getitem") for name in found)


def test_operators_without_integer_kernels_stay_in_float(tmp_path: Path) -> None:
    prices = priced(Chain(c=conv(), t=nn.Tanh(), d=conv()), IMAGE, tmp_path)
    assert by_name(prices)["tanh"].int8_ms == math.inf
    assert math.isfinite(by_name(prices)["conv2d"].int8_ms)


def test_a_tensor_crosses_once_and_the_output_is_float(tmp_path: Path) -> None:
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(model.c(x))
        return model.d(y) + model.e(y)

    prices = priced(Apply(forward, c=conv(), d=conv(), e=conv()), IMAGE, tmp_path)
    crossing = next(item for item in prices.crossings if item.name == "relu")
    assert (crossing.maker, crossing.readers) == ("conv2d", ("conv2d_1", "conv2d_2"))
    assert crossing.quantize_ms == pytest.approx(1e-2 + 1e-5 + 1e-6), "with ReorderOutput and a transposition"
    assert crossing.dequantize_ms == pytest.approx(1e-3 + 1e-4 + 1e-6)
    last = next(item for item in prices.crossings if item.name == "add")
    assert last.readers == ("",)


def test_a_gemm_hands_out_floats_for_nothing_and_a_product_always_does(tmp_path: Path) -> None:
    rows = priced(Chain(a=nn.Linear(8, 8), t=nn.Tanh(), b=nn.Linear(8, 8)), (torch.randn(2, 8),), tmp_path)
    made = next(item for item in rows.crossings if item.name == "linear")
    assert (made.maker, made.dequantize_ms) == ("linear", 0.0)
    tokens = priced(Chain(a=nn.Linear(8, 8), b=nn.Linear(8, 8)), (torch.randn(2, 3, 8),), tmp_path)
    made = next(item for item in tokens.crossings if item.name == "linear")
    assert (made.maker, made.readers) == (None, ("linear_1",))


def test_blocked_layouts_are_paid_where_they_end(tmp_path: Path) -> None:
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = model.c(x)
        return model.d(y * F.adaptive_avg_pool2d(y, 1))

    found = by_name(priced(Apply(forward, c=conv(), d=conv()), IMAGE, tmp_path))
    assert found["conv2d"].float_ms == pytest.approx(1 + 1e-4 + 1e-5), (
        "x comes in plain, the product is plain"
    )
    assert found["conv2d_1"].float_ms == pytest.approx(1 + 1e-4 + 1e-5), "the model's output is plain, too"
    plain = by_name(priced(Chain(c=conv(3, 3), d=conv(3, 3)), (torch.randn(2, 3, 8, 8),), tmp_path))
    assert plain["conv2d"].float_ms == pytest.approx(1.0)


def test_permutations_beside_integer_convolutions_vanish(tmp_path: Path) -> None:
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = model.n(x).permute(0, 3, 1, 2)
        return model.c(y).permute(0, 2, 3, 1)

    prices = priced(Apply(forward, n=nn.LayerNorm(16), c=conv()), (torch.randn(2, 8, 8, 16),), tmp_path)
    found = by_name(prices)["conv2d"]
    assert set(found.operators) == {"permute", "conv2d", "permute_1"}
    assert found.int8_ms == pytest.approx(0.25)
    assert found.float_ms == pytest.approx(3.0, abs=0.01)


def test_errors_are_added_up_by_vertex(tmp_path: Path) -> None:
    program = capture(Chain(c=conv(), r=nn.ReLU(), d=conv()).eval(), IMAGE)
    times = KernelTimes(KernelCache(tmp_path), timer=Invented())
    errors = {"conv2d": 0.5, "relu": 0.25, "conv2d_1": 1.0}
    prices = precision_prices(program, capable_operators(program, VNNI), times, 1, errors)
    assert prices.error({"conv2d"}) == 0.75
    assert prices.error({"conv2d", "conv2d_1"}) == 1.75


def test_the_batch_is_that_of_the_call(tmp_path: Path) -> None:
    timer = Invented()
    program = capture(Chain(c=conv()).eval(), IMAGE)
    times = KernelTimes(KernelCache(tmp_path), timer=timer)
    precision_prices(program, capable_operators(program, VNNI), times, 5)
    assert {kernel.inputs[0] for kernel in timer.seen if kernel.operator == "Conv"} == {(5, 16, 8, 8)}


def test_a_kernel_that_does_not_run_is_noted_and_not_chosen(tmp_path: Path) -> None:
    """It would cost nothing, and the cut would take it."""

    def failing(kernel: Kernel, threads: int) -> float:
        if _is_integer(kernel):
            raise SessionError("the kernel does not run")
        return 1.0

    prices = priced(Chain(l=nn.Linear(8, 8)), (torch.randn(2, 8),), tmp_path, _only_operators(failing))
    assert any("does not run" in note for note in prices.notes)
    vertex = by_name(prices)["linear"]
    assert (vertex.float_ms, vertex.int8_ms) == (1.0, math.inf)


def test_an_operator_that_only_one_side_of_was_measured_has_no_price(tmp_path: Path) -> None:
    """Time ran out between them: the side without a price would look free."""
    prices = priced(Chain(l=nn.Linear(8, 8)), (torch.randn(2, 8),), tmp_path, _only_operators(_half))
    vertex = by_name(prices)["linear"]
    assert (vertex.float_ms, vertex.int8_ms) == (0.0, 0.0)


def _half(kernel: Kernel, threads: int) -> float:
    del threads
    return math.nan if _is_integer(kernel) else 1.0


def _is_integer(kernel: Kernel) -> bool:
    return kernel.precision != "float32"


def _only_operators(failing: Any) -> Any:
    """Fails for operators, not for the conversions between them."""
    invented = Invented()
    return lambda kernel, threads: (invented if kernel.operator in CONVERSIONS else failing)(kernel, threads)


def test_other_errors_are_by_operator_and_the_unnamed_keep_their_proportion() -> None:
    vertices = (
        Vertex("a", ("a", "relu"), 1.0, 0.5, 0.2),
        Vertex("b", ("b",), 1.0, 0.5, 0.2),
        Vertex("c", ("c",), 1.0, 0.5, 0.1),
    )
    changed = PrecisionPrices(vertices, ()).with_errors({"relu": 0.5, "b": 0.3})
    assert [vertex.error for vertex in changed.vertices] == pytest.approx([0.5, 0.3, 0.2])
    assert changed.ms({"a"}) == PrecisionPrices(vertices, ()).ms({"a"})
