"""`max_drop`: as much in integers as the bound allows, what was given up said, with a metric and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.analysis.sensitivity import LayerError, Sensitivity
from fxcompress.api import frontier
from fxcompress.api.frontier import walk
from fxcompress.api.variant import Variant
from fxcompress.errors import BudgetError
from fxcompress.pipeline import Journal


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


@pytest.mark.parametrize("measured", [True, False], ids=["metric", "output error"])
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
def test_the_walk_gives_up_no_more_than_needed(needed: int, monkeypatch: pytest.MonkeyPatch):
    names = [f"layer{index}" for index in range(8)]
    rows = tuple(LayerError(name, name, 30.0, 30.0, 1.0) for name in names)
    monkeypatch.setattr(frontier, "attribute", lambda *_, **__: Sensitivity(rows, 1.0, 4))
    judged: list[int] = []

    def without(operators: frozenset[str]) -> Variant | None:
        spared = frozenset(operators)
        return None if len(spared) == 8 else Variant("int8", spared)  # type: ignore[arg-type]

    def loss(item: Judged) -> float:
        judged.append(len(item.spared))
        return 0.0 if len(item.spared) >= needed else 1.0

    full = Variant("int8", object(), reference=object(), without=without)  # type: ignore[arg-type]
    samples: Sequence[list[Tensor]] = [[torch.zeros(1)]]
    step = walk(full, samples, 0.5, Journal(None), (lambda made: Judged(made.program), loss))
    if needed == 8:
        assert step is None
    else:
        assert step is not None
        assert step.candidate.spared == frozenset(names[:needed])
        assert f"{needed} of 8 layers" in step.variant.notes[-1]
    assert len(judged) == len(set(judged)) <= 6
