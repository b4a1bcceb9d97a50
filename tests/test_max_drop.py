"""`max_drop`: as much in integers as the bound allows, what was given up said, with a metric and without."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.analysis.sensitivity import LayerError, attribute
from fxcompress.api import frontier
from fxcompress.api.frontier import Step, fastest_within, walk
from fxcompress.api.variant import Tradeoff, Variant
from fxcompress.errors import BudgetError, InputError
from tests.plan.quantized import quantized


class Fragile(nn.Module):
    """Four convolutions; the second has weights that int8 per channel cannot hold beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.d = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        with torch.no_grad():
            self.a.weight[0], self.a.bias[0] = 0.0, 0.0
            self.b.weight[:, 0] = 300.0  # multiplies zeros in float, and spends the range of every channel

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.d(torch.relu(self.c(x)))


IMAGES = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def fragile() -> nn.Module:
    torch.manual_seed(0)
    return Fragile().eval()


def closeness(model: nn.Module):
    """A metric that falls with the distance from the float model."""
    with torch.no_grad():
        wanted = [model(image) for image in IMAGES]

    def evaluate(f) -> float:
        errors = [float((f(image) - exact).norm() / exact.norm()) for image, exact in zip(IMAGES, wanted)]
        return 1.0 - sum(errors) / len(errors)

    return evaluate


@pytest.mark.parametrize(
    "measured",
    [pytest.param(True, marks=pytest.mark.slow, id="metric"), pytest.param(False, id="output error")],
)
def test_only_the_layers_that_hurt_stay_in_float(fragile: nn.Module, measured: bool):
    options = {"quantize": "int8", "calibration": IMAGES, "target": "portable"}
    with_metric = {"evaluate": closeness(fragile)} if measured else {}
    quantize = fxcompress.Quantize(equalize=False, smooth=False, correct_bias=False)
    options["quantize"] = quantize
    loose = fxcompress.optimize(fragile, IMAGES[0], **options).report
    bound = 0.04
    assert next(item.error for item in loose.candidates if item.name == "int8") > 2 * bound
    result = fxcompress.optimize(fragile, IMAGES[0], max_drop=bound, **with_metric, **options)
    chosen = next(item for item in result.report.candidates if item.chosen)
    assert chosen.name == "int8, 1 layers in float"
    assert chosen.error is not None and chosen.error <= bound
    assert any("1 of 4 layers stay in float: b" in note for note in result.report.notes)
    plan = result.plan.quantization
    assert plan.precision["conv2d_1"] == "float"
    assert {plan.precision[name] for name in ("conv2d", "conv2d_2", "conv2d_3")} == {"int8"}
    assert next(item.reason for item in plan.declined if item.node == "conv2d_1") == frontier.GIVEN_UP
    reasons = {item.name: item.reason for item in result.report.candidates}
    assert reasons["int8"].startswith("loses 0.")


def test_a_bound_that_nothing_keeps_leaves_float(fragile: nn.Module):
    result = fxcompress.optimize(
        fragile, IMAGES[0], quantize="int8", calibration=IMAGES, target="portable", max_drop=1e-6
    )
    assert result.plan.quantization is None
    assert next(item.name for item in result.report.candidates if item.chosen) == "float"


def test_everything_was_asked_for_and_loses_too_much(fragile: nn.Module):
    quantize = fxcompress.Quantize(precision="full", equalize=False, smooth=False, correct_bias=False)
    with pytest.raises(BudgetError, match="outputs may move by 0.04 of their norm"):
        fxcompress.optimize(
            fragile, IMAGES[0], quantize=quantize, calibration=IMAGES, target="portable", max_drop=0.04
        )


@dataclass(frozen=True)
class Judged:
    """Stands for a candidate: the layers that are in float."""

    spared: frozenset[str]


@pytest.mark.parametrize("needed", range(1, 9))
def test_the_walk_gives_up_no_more_than_needed(needed: int):
    names = [f"layer{index}" for index in range(8)]
    rows = tuple(LayerError(name, name, 30.0, 30.0, 1.0) for name in names)
    judged: list[int] = []

    def without(operators: frozenset[str]) -> Variant | None:
        spared = frozenset(operators)
        return None if len(spared) == 8 else Variant("int8", spared)  # type: ignore[arg-type]

    def loss(item: Judged) -> float:
        judged.append(len(item.spared))
        return 0.0 if len(item.spared) >= needed else 1.0

    def judge(made: Variant) -> tuple[Judged, float]:
        return Judged(made.program), loss(Judged(made.program))  # type: ignore[arg-type]

    full = Variant("int8", object(), without=without)  # type: ignore[arg-type]
    step = walk(full, rows, 0.5, judge)
    if needed == 8:
        assert step is None
    else:
        assert step is not None
        assert step.candidate.spared == frozenset(names[:needed])
        assert f"{needed} of 8 layers" in step.variant.notes[-1]
    assert len(judged) == len(set(judged)) <= 6


def points(count: int, planned: list[str], floats: bool = False) -> list[Tradeoff]:
    """A frontier: each point with one operator less in int8, the last with none where `floats`."""
    names = [f"v{place}" for place in range(count)]

    def point(left: int) -> Tradeoff:
        name = f"{left} of {count}"
        kernels = {} if floats and left == 1 else {"v0": "QLinearConv"}

        def plan() -> Any:
            planned.append(name)
            return SimpleNamespace(kernels=kernels)

        made = Variant(name, object())  # type: ignore[arg-type]
        return Tradeoff(name, frozenset(names[:left]), 1.0, 1.0 / left, plan, lambda _: made)

    return [point(left) for left in range(count, 0, -1)]


@pytest.mark.parametrize("needed", range(10))
def test_the_fastest_point_of_the_frontier_within_the_bound_is_found(needed: int):
    planned: list[str] = []
    frontier_points = points(9, planned)
    losses = {point.variant: 1.0 if place < needed else 0.0 for place, point in enumerate(frontier_points)}
    step = fastest_within(
        frontier_points, [], 0.5, lambda made: (Judged(frozenset({made.name})), losses[made.name])
    )
    assert len(planned) <= 4
    if needed == 9:
        assert step is None
    else:
        assert step is not None
        assert step.variant.name == frontier_points[needed].variant
        assert step.candidate.spared == {step.variant.name}
        assert f"{needed} operators stay in float that would be faster" in step.variant.notes[-1]


def test_points_that_were_judged_before_are_not_made_again():
    planned: list[str] = []
    frontier_points = points(3, planned)
    names = [point.variant for point in frontier_points]
    known = [
        Step(Variant(name, object()), Judged(frozenset()), loss)  # type: ignore[arg-type]
        for name, loss in zip(names, (1.0, 0.2, 0.0))
    ]
    assert fastest_within(frontier_points, known, 0.5, pytest.fail) is known[1]
    assert fastest_within(frontier_points, known[:2], 0.5, pytest.fail) is known[1], "nothing slower is made"
    assert planned == []


def test_a_frontier_that_ends_in_float_offers_nothing():
    step = fastest_within(points(3, [], floats=True), [], 0.5, lambda made: (Judged(frozenset()), 1.0))
    assert step is None


def test_without_a_metric_the_bound_holds_for_what_pruning_costs_too(fragile: nn.Module):
    """Once the float model, however it was pruned, counted as losing nothing."""
    options = {"prune": fxcompress.Prune(0.6, block=1)}
    free = fxcompress.optimize(fragile, IMAGES[0], **options).report
    assert free.output_error is not None
    assert free.output_error.relative > 0.05
    with pytest.raises(BudgetError, match="may move by 0.01"):
        fxcompress.optimize(fragile, IMAGES[0], max_drop=0.01, **options)


class Detector(nn.Module):
    """Boxes in pixels, and the scores that int4 moves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 8)
        self.register_buffer("anchors", torch.arange(0.0, 640.0, 40.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"boxes": x + self.anchors, "scores": self.b(torch.relu(self.a(x)))}


def test_every_output_keeps_the_bound():
    """Once the norm of all outputs together was judged: pixels hid what scores lost."""
    torch.manual_seed(0)
    model, x = Detector().eval(), torch.randn(64, 16)
    asked = {"quantize": fxcompress.Quantize("int4-weights", precision="full"), "calibration": [x]}
    error = fxcompress.optimize(model, x, **asked).report.output_error
    assert error is not None and error.relative is not None
    assert error.relative > 0.01
    assert error.output == "scores"
    with pytest.raises(BudgetError, match=r"move by: int4-weights 0\.\d+ \(scores\)"):
        fxcompress.optimize(model, x, max_drop=0.01, **asked)


def test_an_error_bound_on_integers_is_refused_before_any_work(fragile: nn.Module):
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = fragile

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).argmax(1)

    with pytest.raises(InputError, match="all outputs are integers"):
        fxcompress.optimize(Labels().eval(), IMAGES[0], max_drop=0.05)


class Gated(nn.Module):
    """Two hard-swishes between fragile layers: their gates exist in the quantized program alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.inner.b(F.hardswish(self.inner.a(x))))
        return self.inner.d(F.hardswish(self.inner.c(x)))


def test_layers_are_given_up_under_names_of_the_float_program(fragile: nn.Module):
    before, plan, after = quantized(Gated(fragile), (IMAGES[0],))
    samples = [[image] for image in IMAGES]
    raw = [layer.node for layer in attribute(before, after, samples).layers]
    assert any(name.endswith("_gate") for name in raw), "gates are tensors of the quantized program"
    full = Variant("int8", after, plan, reference=before, without=lambda _: None)
    names = [layer.node for layer in frontier.ranked_layers(full, samples)]
    known = {node.name for node in before.graph.nodes}
    assert {"conv2d", "conv2d_1", "conv2d_2", "conv2d_3"} <= set(names) <= known
    assert len(names) == len(set(names))
