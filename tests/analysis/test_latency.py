"""The price in milliseconds, with a timer made up by the test: stairs, interpolation, what is measured."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.analysis.kernels import ROWS
from fxcompress.analysis.latency import LatencyPrice, Term, latency_price
from fxcompress.errors import BudgetError, InputError
from fxcompress.graph.capture import capture
from fxcompress.ops.cost import MACS
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import narrowest_plan, plan_pruning
from fxcompress.runtime.kernel_cache import KernelCache
from fxcompress.runtime.kernel_models import Kernel
from fxcompress.runtime.kernel_times import KernelTimes
from fxcompress.runtime.session import SessionError

BLOCK = 16


class Clock:
    """Convolutions cost their multiplications with channels padded to the block; nothing else costs much."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []

    def __call__(self, kernel: Kernel, threads: int) -> float:
        self.kernels.append(kernel)
        if kernel.operator != "Conv":
            return 1e-6 * math.prod(kernel.inputs[0])
        outputs, inputs, *space = kernel.stored[0]
        pixels = math.prod(kernel.inputs[0][2:])
        return 1e-6 * _padded(outputs) * _padded(inputs) * math.prod(space) * pixels


def _padded(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK if channels > 3 else channels


class Net(nn.Module):
    """Three convolutions with batch norms, a residual, a depthwise one and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.wide = nn.Conv2d(64, 96, 1)
        self.depth = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.back = nn.Conv2d(96, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.back(torch.relu(self.depth(torch.relu(self.wide(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    torch.manual_seed(0)
    return analyse(capture(Net().eval(), torch.randn(2, 3, 8, 8)))


def priced(analysis: Analysis, folder: Path, batch: int = 1, **options: object) -> tuple[LatencyPrice, Clock]:
    clock = Clock()
    times = KernelTimes(KernelCache(folder), timer=options.pop("timer", clock), **options)
    return latency_price(analysis, times, BLOCK, batch), clock


def test_kernels_have_the_batch_of_the_call(analysis: Analysis, tmp_path: Path) -> None:
    for batch in (1, 5):
        _, clock = priced(analysis, tmp_path / str(batch), batch)
        assert {kernel.inputs[0][0] for kernel in clock.kernels} == {batch}


def test_what_the_runtime_fuses_costs_nothing(analysis: Analysis, tmp_path: Path) -> None:
    _, clock = priced(analysis, tmp_path)
    assert sorted({kernel.operator for kernel in clock.kernels}) == ["Conv", "Gemm", "GlobalAveragePool"]


def test_depthwise_kernels_keep_one_channel_per_group(analysis: Analysis, tmp_path: Path) -> None:
    price, clock = priced(analysis, tmp_path)
    plan = plan_pruning(analysis, Prune(budget=Budget(ms="50%")), BLOCK, latency=price)
    assert plan.channels
    depthwise = [kernel for kernel in clock.kernels if dict(kernel.attributes).get("group")]
    assert len(depthwise) > 1
    for kernel in depthwise:
        assert dict(kernel.attributes)["group"] == kernel.inputs[0][1] == kernel.stored[0][0]
        assert kernel.stored[0][1] == 1


def test_at_full_width_the_price_is_the_sum_of_kernels(analysis: Analysis, tmp_path: Path) -> None:
    price, clock = priced(analysis, tmp_path)
    assert price.at({}) == pytest.approx(sum(clock(kernel, 1) for kernel in list(clock.kernels)))


@given(st.integers(1, 64), st.integers(1, 96))
def test_a_width_costs_what_the_edge_of_its_stair_does(first: int, wide: int) -> None:
    """40 channels cost what 48 do (TP#38, TP#149): the price never promises a gain inside a step."""
    analysis, price = made()
    axes = {str(group.members[0]): group.axis for group in analysis.groups}
    a, b = axes["first.weight[0]"], axes["wide.weight[0]"]

    def edge(width: int, size: int) -> int:
        return min(size, -(-width // BLOCK) * BLOCK)

    found = price.at({a: first, b: wide})
    linear = 1e-6 * 64 * (first - edge(first, 64))  # the pooling and the Gemm have no stairs in their inputs
    assert found == pytest.approx(price.at({a: edge(first, 64), b: edge(wide, 96)}) + linear, rel=1e-2)


@given(st.integers(1, 96), st.integers(1, 96), st.integers(1, 64))
def test_wider_is_never_cheaper(narrow: int, wide: int, first: int) -> None:
    analysis, price = made()
    axes = {str(group.members[0]): group.axis for group in analysis.groups}
    a, b = axes["first.weight[0]"], axes["wide.weight[0]"]
    low, high = sorted((narrow, wide))
    assert price.at({a: first, b: low}) <= price.at({a: first, b: high}) + 1e-12


def test_few_kernels_are_measured(analysis: Analysis, tmp_path: Path) -> None:
    price, clock = priced(analysis, tmp_path)
    for share in ("80%", "60%", "40%"):
        plan_pruning(analysis, Prune(budget=Budget(ms=share)), BLOCK, latency=price)
    assert len(clock.kernels) < 60
    assert len({kernel.key for kernel in clock.kernels}) == len(clock.kernels)


def test_calibration_is_right_about_the_original(analysis: Analysis, tmp_path: Path) -> None:
    price, _ = priced(analysis, tmp_path)
    listed = price.at({})
    slow = price.calibrated(1.5 * listed, 3.0)
    assert slow.at({}) == pytest.approx(3.0)
    assert slow.constant == pytest.approx(1.0)
    fast = price.calibrated(0.5 * listed, 3.0)
    assert fast.at({}) == pytest.approx(3.0)
    assert fast.constant == 0.0
    assert sum(term.at({}) for term in slow.terms) + slow.constant == pytest.approx(3.0)


def test_a_kernel_that_the_runtime_lacks_is_part_of_the_constant(analysis: Analysis, tmp_path: Path) -> None:
    def timer(kernel: Kernel, threads: int) -> float:
        if kernel.operator == "Gemm":
            raise SessionError("no such kernel")
        return 1.0

    whole, _ = priced(analysis, tmp_path / "a", timer=lambda kernel, threads: 1.0)
    price, _ = priced(analysis, tmp_path / "b", timer=timer)
    assert price.at({}) == whole.at({}) - 1


def test_when_the_time_for_measuring_is_spent_prices_are_in_proportion(
    analysis: Analysis, tmp_path: Path
) -> None:
    times = KernelTimes(KernelCache(tmp_path), timer=Clock())
    price = latency_price(analysis, times, BLOCK)
    times.seconds = 0.0
    axis = next(group.axis for group in analysis.groups if str(group.members[0]) == "wide.weight[0]")
    assert 0 < price.at({axis: 16}) < price.at({axis: 48}) < price.at({})


@pytest.mark.parametrize("share", [0.8, 0.6, 0.4])
def test_a_plan_meets_its_milliseconds_from_below_on_the_edges(
    analysis: Analysis, tmp_path: Path, share: float
) -> None:
    """Pruning that makes a model slower until widths are rounded: TP#38, TP#149, TP#382, TP#97."""
    price, _ = priced(analysis, tmp_path)
    asked = share * price.at({})
    plan = plan_pruning(analysis, Prune(budget=Budget(ms=asked)), BLOCK, latency=price)
    predicted = price.at({axis: len(stay) for axis, stay in plan.indices(analysis).items()})
    assert 0.85 * asked <= predicted <= asked
    assert all(len(stay) % BLOCK == 0 for stay in plan.channels.values())


def test_milliseconds_and_parameters_hold_together(analysis: Analysis, tmp_path: Path) -> None:
    price, _ = priced(analysis, tmp_path)
    options = Prune(budget=Budget(ms="90%", params="50%", macs="70%"))
    plan = plan_pruning(analysis, options, BLOCK, latency=price)
    predicted = price.at({axis: len(stay) for axis, stay in plan.indices(analysis).items()})
    assert predicted <= 0.9 * price.at({})
    assert plan.after.params <= 0.5 * plan.before.params
    assert plan.after.macs <= 0.7 * plan.before.macs


def test_out_of_reach_states_the_reachable_milliseconds(analysis: Analysis, tmp_path: Path) -> None:
    price, _ = priced(analysis, tmp_path)
    least = narrowest_plan(analysis, Prune(), BLOCK)
    floor = price.at({axis: len(stay) for axis, stay in least.indices(analysis).items()})
    with pytest.raises(BudgetError, match=f"{floor / price.at({}):.1%}"):
        plan_pruning(analysis, Prune(budget=Budget(ms=0.5 * floor)), BLOCK, latency=price)


def test_milliseconds_without_a_price_are_refused(analysis: Analysis) -> None:
    with pytest.raises(InputError, match="needs kernel times"):
        plan_pruning(analysis, Prune(budget=Budget(ms=1.0)), BLOCK)


def test_every_listed_contraction_counts_multiplications_too() -> None:
    contractions = {
        target for target in ROWS if any(name in str(target) for name in ("conv", "mm", "matmul", "linear"))
    }
    assert contractions <= set(MACS)


@cache
def made() -> tuple[Analysis, LatencyPrice]:
    torch.manual_seed(0)
    found = analyse(capture(Net().eval(), torch.randn(2, 3, 8, 8)))
    return found, latency_price(found, KernelTimes(_Nowhere(), timer=Clock()), BLOCK)


class _Nowhere(KernelCache):
    """A cache that keeps nothing."""

    def read(self, machine: str) -> dict[str, float]:
        return {}

    def write(self, machine: str, times: object) -> None:
        return


class Block(nn.Module):
    """Attention with four heads of width eight, and an MLP behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return self.head(x + self.down(nn.functional.gelu(self.up(self.norm(x)))))


def test_kernels_of_a_transformer_block_agree_in_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = analyse(capture(Block().eval(), torch.randn(2, 6, 32)))
    price, clock = priced(found, tmp_path)
    for share in ("70%", "50%"):
        plan_pruning(found, Prune(budget=Budget(ms=share), factors="both"), BLOCK, latency=price)
    operators = {kernel.operator for kernel in clock.kernels}
    assert {"MatMul", "Add", "Attention", "LayerNormalization", "Gelu", "Transpose"} <= operators
    heads = [kernel.inputs for kernel in clock.kernels if kernel.operator == "Attention"]
    assert len(heads) > 1
    for q, k, v in heads:
        assert q == k
        assert q[:3] == v[:3]
    for kernel in clock.kernels:
        if kernel.operator == "MatMul":
            assert kernel.inputs[0][-1] == kernel.stored[0][0], kernel


def test_terms_name_the_axes_that_they_read() -> None:
    analysis, price = made()
    assert isinstance(price.terms[0], Term)
    named = {axis for term in price.terms for axis in term.axes}
    assert {group.axis for group in analysis.groups} <= named
