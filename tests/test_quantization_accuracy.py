"""What quantization does for accuracy inside one call: which steps run, what they save, how to leave them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.api import quantizing
from fxcompress.api.calibrating import measured_ranges
from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import Quantize, plan_quantization, tensors_to_observe
from fxcompress.recipes import LOSSLESS, recipe_of
from fxcompress.targets.catalog import resolve

STEPS = {"migrate-scales", "equalize-channels", "correct-biases", "round-adaptively"}


def data(count: int = 8, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 12, 12, generator=generator) for _ in range(count)]


def hostile() -> nn.Module:
    """Depthwise layers whose channels are spread over ten powers of two."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
    ]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    factors = torch.exp2(torch.linspace(-5, 5, 16).round())
    with torch.no_grad():
        for maker, reader in ((0, 2), (2, 4)):
            first, second = model[maker], model[reader]
            shuffled = factors[torch.randperm(16)]
            first.weight.mul_(shuffled[:, None, None, None])
            first.bias.mul_(shuffled)
            depthwise = second.weight.shape[1] == 1
            second.weight.div_(shuffled.reshape(-1, 1, 1, 1) if depthwise else shuffled.reshape(1, -1, 1, 1))
    return model


def request_of(batches: list[Tensor], **options: Any) -> Request:
    return Request(
        recipe=recipe_of(None, Quantize(precision="full", **options)),
        calibration=batches,
        target=resolve("onnxruntime"),
    )


def quantized(model: nn.Module, batches: list[Tensor], **options: Any) -> tuple[Program, Variant, Journal]:
    """The float program, the full int8 variant, and the log of what was done."""
    program = Journal().apply_all(LOSSLESS, capture(model.eval(), (batches[0],)))
    journal = Journal()
    calibration = quantizing.Calibration(batches, batches)
    made = quantizing.quantized(request_of(batches, **options), program, calibration, journal).variants
    return program, made[0], journal


def decibels(program: Program, other: Program) -> float:
    """Outputs against their errors, on samples that no step has read."""
    signal = noise = 0.0
    for batch in data(4, seed=7):
        with torch.no_grad():
            exact, found = program(batch), other(batch)
        signal, noise = signal + float(exact.var()), noise + float((exact - found).square().mean())
    return float(10 * torch.log10(torch.tensor(signal / noise)))


def ran(journal: Journal) -> set[str]:
    return {entry.name for entry in journal.entries} & STEPS


def test_spread_channels_are_found_by_default_and_lost_without():
    program, ours, journal = quantized(hostile(), data())
    assert ran(journal) == STEPS - {"round-adaptively"}
    plain = {"equalize": False, "smooth": False, "correct_bias": False, "calibrator": "minmax"}
    _, without, silent = quantized(hostile(), data(), **plain)
    assert ran(silent) == set()
    assert decibels(program, ours.program) > decibels(program, without.program) + 15
    assert any("stored integers corrected" in note for note in ours.notes)


def test_adaptive_rounding_takes_the_place_of_bias_correction():
    program, biases, _ = quantized(hostile(), data())
    _, rounded, journal = quantized(hostile(), data(), rounding="adaptive")
    assert "round-adaptively" in ran(journal)
    assert "correct-biases" not in ran(journal)
    assert decibels(program, rounded.program) > decibels(program, biases.program) - 0.5


@pytest.mark.parametrize("calibrator", ["auto", "minmax", "average", "percentile", "mse", "entropy"])
def test_every_calibrator_makes_a_program_close_to_the_float_one(calibrator):
    program, made, _ = quantized(hostile(), data(), calibrator=calibrator)
    assert decibels(program, made.program) > (15 if calibrator == "entropy" else 22)


def test_auto_takes_the_ranges_that_leave_the_outputs_closer():
    program, _, _ = quantized(hostile(), data())
    target = resolve("onnxruntime")
    observed = tensors_to_observe(program, target)
    few = torch.cat(data(2))
    found, errors = {}, {}
    for name in ("auto", "minmax", "mse"):
        request = request_of(data(), calibrator=name)
        found[name] = measured_ranges(request, program, data(), data(), observed)
        plan = plan_quantization(program, found[name], target, request.quantize)
        with torch.no_grad():
            made = QuantizeTensors(plan).run(program).program(few)
            errors[name] = float((made - program(few)).square().sum())
    assert found["minmax"] != found["mse"]
    assert errors["auto"] == min(errors.values()) < max(errors.values())


def test_a_search_of_weight_ranges_clamps_a_lonely_weight():
    torch.manual_seed(0)
    layer = nn.Linear(6000, 3).eval()
    with torch.no_grad():
        layer.weight[0] = (layer.weight[0].sign() * 0.01).roll(1)
        layer.weight[0, 0] = 0.2
    batches = [torch.randn(16, 6000) for _ in range(2)]
    plans = [quantized(layer, batches, weight_range=name)[1].plan for name in ("minmax", "mse")]
    scales = [plan.weights["weight"].scales for plan in plans if plan is not None]
    assert len(scales) == 2
    assert all(searched <= plain for plain, searched in zip(*scales, strict=True))
    assert scales[1][0] < scales[0][0]


def test_constant_activations_are_quantized_exactly():
    class Constant(nn.Module):
        """A dead rectifier: all zeros, whatever comes in."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            with torch.no_grad():
                self.a.bias.fill_(-1e3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))).flatten(1)

    program, made, _ = quantized(Constant(), data())
    with torch.no_grad():
        exact, found = program(data()[0]), made.program(data()[0])
    assert float((exact - found).abs().max()) <= float(exact.abs().max()) / 200
