"""A budget in milliseconds through the whole call, on a machine made up by the test."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress import Budget, BudgetError, Prune
from fxcompress.analysis.groups import analyse
from fxcompress.api import latency
from fxcompress.api.request import Request
from fxcompress.pipeline import Journal
from fxcompress.recipes import recipe_of
from fxcompress.report.report import Report
from fxcompress.runtime.kernel_cache import KernelCache
from fxcompress.runtime.kernel_models import Kernel
from fxcompress.runtime.kernel_times import KernelTimes
from fxcompress.runtime.timing import Comparison
from fxcompress.targets import resolve


class Net(nn.Module):
    """A stem, six 1x1 convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 96, 128, 96, 64, 96, 128)
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def stored(content: bytes) -> float:
    """Values that the weights of a file hold, in thousands."""
    model = onnx.load_from_string(content)
    return sum(len(item.raw_data) / 4e3 for item in model.graph.initializer if len(item.dims) > 1)


def compare(models: Mapping[str, bytes], feeds: Any, *, threads: int, **options: Any) -> Comparison:
    """A machine on which a model takes a constant, and longer the more weights it has; it drifts."""
    compare.calls += 1
    drift = 1.0 + 0.5 * compare.calls
    times = {label: (drift * 1e-3 * (2.0 + stored(content)),) * 3 for label, content in models.items()}
    return Comparison(times, dict.fromkeys(models, 1), threads)


def timer(kernel: Kernel, threads: int) -> float:
    """Kernel times that know nothing of the constant and underrate the wide ones."""
    values = sum(torch.Size(shape).numel() for shape in kernel.stored if len(shape) > 1)
    return 1e-6 + (values / 1e3) ** 0.9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compare.calls = 0
    monkeypatch.setattr(latency, "compare", compare)
    monkeypatch.setattr(latency, "profiled", lambda content, feeds, threads: 1.0)
    monkeypatch.setattr(latency, "KernelTimes", partial(KernelTimes, KernelCache(tmp_path), timer=timer))


@cache
def program() -> fxcompress.Program:
    torch.manual_seed(0)
    return fxcompress.capture(Net().eval(), torch.randn(2, 3, 8, 8))


def removal(**options: Any) -> latency.Removal:
    """Planning alone: what `optimize` does between analysis and pruning."""
    prune = Prune(**options)
    request = Request(
        recipe=recipe_of(prune, None),
        target=resolve("onnxruntime"),
    )
    return latency.plan_removal(request, prune, program(), analyse(program()), None, Journal())


@pytest.mark.usefixtures("machine")
def test_what_is_measured_is_what_was_asked() -> None:
    """FLOPs fall and latency does not (TP#38, TP#149, TP#382, TP#97): here latency is what is asked for."""
    result = fxcompress.optimize(program(), prune=Prune(budget=Budget(ms="60%", params="90%")))
    budget = result.report.latency_budget
    assert budget is not None
    assert budget.asked_ms == pytest.approx(0.6 * budget.original_ms)
    assert 0.95 * budget.asked_ms <= budget.measured_ms <= budget.asked_ms
    (chosen,) = (item for item in budget.rounds if item.chosen)
    assert chosen.measured_ms == budget.measured_ms
    assert chosen.measurements > 1
    assert Report.from_dict(result.report.to_dict()) == result.report
    names = [entry.name for entry in result.report.passes]
    assert names.index("measure-kernels") < names.index("plan-to-latency") < names.index("prune-channels")


@pytest.mark.usefixtures("machine")
def test_other_bounds_hold_beside_milliseconds() -> None:
    found = removal(budget=Budget(ms="90%", params="40%"))
    assert found.plan.after.params <= 0.4 * found.plan.before.params
    assert found.latency is not None
    assert found.latency.measured_ms <= 0.6 * found.latency.original_ms
    assert any("were asked for" in note for note in found.notes)


@pytest.mark.usefixtures("machine")
def test_out_of_reach_is_refused_with_what_was_measured() -> None:
    with pytest.raises(BudgetError, match="narrowest widths only bring it down to"):
        removal(budget=Budget(ms=0.01))


@pytest.mark.usefixtures("machine")
def test_the_same_measurements_lead_to_the_same_plan() -> None:
    first = removal(budget=Budget(ms="50%"))
    compare.calls = 0
    assert removal(budget=Budget(ms="50%")) == first


def test_without_milliseconds_nothing_is_measured() -> None:
    found = removal(budget=Budget(macs="50%"))
    assert found.latency is None
    assert found.plan.after.macs <= 0.5 * found.plan.before.macs
