"""An operator's noise: what rounding does to its weight, and a twelfth of the squared steps around it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxcompress.analysis.quantization_noise import operator_noise
from fxcompress.graph.capture import capture
from fxcompress.numerics.ranges import Range
from tests.passes.models import Chain

ROWS = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(12, 8)


def test_it_is_what_rounding_the_weight_and_the_input_does() -> None:
    layer = linear()
    program = capture(Chain(a=layer).eval(), (ROWS[:2],))
    low, high = float(ROWS.min()), float(ROWS.max())
    found = operator_noise(program, ["linear"], {"x": Range(low, high)}, [ROWS])
    step = (high - low) / 255
    rounded = (ROWS / step).round() * step
    of_input = float((rounded - ROWS).square().sum() / ROWS.square().sum())
    values = layer.weight.detach()
    scales = values.abs().amax(1, keepdim=True) / 127
    stored = (values / scales).round() * scales
    of_weight = float((stored - values).square().sum() / values.square().sum())
    assert found["linear"] == pytest.approx(of_input + of_weight, rel=0.1)
    alone = operator_noise(program, ["linear"], {}, [ROWS])
    assert alone["linear"] == pytest.approx(of_weight, rel=1e-3)


def test_an_outlier_makes_noise() -> None:
    program = capture(Chain(a=linear()).eval(), (ROWS[:2],))
    plain = operator_noise(program, ["linear"], {"x": Range(-3, 3)}, [ROWS])
    wide = operator_noise(program, ["linear"], {"x": Range(-3, 300)}, [ROWS])
    assert wide["linear"] > 100 * plain["linear"]


def test_what_cannot_be_measured_is_no_noise() -> None:
    program = capture(Chain(t=nn.Tanh()).eval(), (ROWS[:2],))
    zeros = torch.zeros(4, 12)
    assert operator_noise(program, ["tanh", "gone"], {"x": Range(0, 0), "tanh": Range(-1, 1)}, [zeros]) == {
        "tanh": 0.0
    }
