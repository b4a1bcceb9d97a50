"""Hard sigmoids and hard-swishes spelled out in every way become one operator; other clamps stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.capture import capture
from fxcompress.passes.recognize_activations import RecognizeActivations
from fxcompress.plan.quantization_plan import Quantize
from tests.passes.fusing import assert_fuses, short
from tests.passes.models import Apply, Case, assert_same_function
from tests.plan.quantized import planned
from tests.targets.forms import conv

Function = Callable[[Tensor], Tensor]


def case(function: Function) -> Case:
    return Case("", lambda: Apply(lambda _, x: function(x)), (2, 3, 5, 4))


SWISHES: dict[str, Function] = {
    "scaled at the end": lambda x: x * F.relu6(x + 3) / 6,
    "scaled at the gate": lambda x: x * (F.relu6(x + 3) / 6),
    "by a factor": lambda x: F.relu6(x + 3.0) * (1 / 6) * x,
    "by two factors": lambda x: x * (F.relu6(x + 3) / 2) / 3,
    "hardtanh": lambda x: x * F.hardtanh(3 + x, 0.0, 6.0) / 6,
    "clamp": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "scaled before and behind": lambda x: x * torch.clamp((x + 3) * 0.5, 0, 3) / 3,
    "subtracted": lambda x: x * torch.clamp(x - -3.0, 0.0, 6.0) / 6.0,
    "in place": lambda x: x.mul(F.relu6(x + 3).div_(6)),
    "by the gate's operator": lambda x: x * F.hardsigmoid(x),
}


@pytest.mark.parametrize("written", SWISHES)
def test_a_hard_swish_is_recognized(written: str) -> None:
    changes = 2 if written in ("scaled at the gate", "clamp", "in place", "by a factor") else 1
    assert_fuses(RecognizeActivations(), case(SWISHES[written]), "hardswish", changes)


SIGMOIDS: dict[str, Function] = {
    "relu6": lambda x: F.relu6(x + 3) / 6,
    "clamp": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "of a scaled tensor": lambda x: F.relu6(2 * x + 3) / 6,
}


@pytest.mark.parametrize("written", SIGMOIDS)
def test_a_hard_sigmoid_is_recognized(written: str) -> None:
    before = "mul " if written == "of a scaled tensor" else ""
    assert_fuses(RecognizeActivations(), case(SIGMOIDS[written]), f"{before}hardsigmoid")


def test_a_gate_of_another_tensor_stays_a_gate() -> None:
    """Squeeze-excitation: what is multiplied is not what the gate is computed of."""
    found = case(lambda x: x * F.relu6(x.mean((2, 3), keepdim=True) + 3) / 6)
    outcome = RecognizeActivations().run(capture(found.model(), found.example()))
    assert outcome.changed == ()
    found = case(lambda x: x * (F.relu6(x.mean((2, 3), keepdim=True) + 3) / 6))
    assert_fuses(RecognizeActivations(), found, "mean hardsigmoid mul")


def test_a_factor_that_float32_cannot_tell_from_a_sixth() -> None:
    program = capture(Apply(lambda _, x: x * F.relu6(x + 3) * 0.16666667), torch.randn(2, 3))
    outcome = RecognizeActivations().run(program)
    assert short(outcome.program) == ["hardswish"]
    assert_same_function(program, outcome.program, 1e-6)


def test_in_float64_only_what_float64_cannot_tell() -> None:
    program = capture(Apply(lambda _, x: x * F.relu6(x + 3) * 0.16666667), torch.randn(2, 3)).to(
        torch.float64
    )
    assert RecognizeActivations().run(program).changed == ()


@pytest.mark.parametrize("written", ["scaled at the end", "by the gate's operator"])
def test_a_model_of_doubles_is_deployed(written: str) -> None:
    """The runtime has no hard sigmoid of float64."""
    torch.manual_seed(0)
    model = Apply(lambda m, x: SWISHES[written](m.f(x)), f=torch.nn.Linear(3, 4)).double().eval()
    result = fxcompress.optimize(model, torch.randn(2, 3).double())
    assert "HardSigmoid" not in [node.op_type for node in result.onnx.graph.node]


KEPT: dict[str, Function] = {
    "Keras": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "two shifts, which float32 rounds": lambda x: F.relu6((x + 1e8) - (1e8 - 3)) / 6,
    "rounded": lambda x: x * F.relu6(x + 3) * 0.1667,
    "another shift": lambda x: x * F.relu6(x + 2) / 6,
    "another bound": lambda x: x * torch.clamp(x + 3, 0, 5) / 6,
    "from below zero": lambda x: x * torch.clamp(x + 3, -1, 6) / 6,
    "no upper bound": lambda x: x * torch.clamp(x + 3, min=0) / 6,
    "read twice": lambda x: torch.stack([y := F.relu6(x + 3), x * y / 6]),
    "shifted behind": lambda x: x * (F.relu6(x + 3) + 1) / 6,
    "integers": lambda x: torch.clamp(x.long() + 3, 0, 6),
    "integers, then floats": lambda x: torch.clamp(x.long() + 3.0, 0, 6) / 6,
    "gate read twice": lambda x: torch.stack([y := F.hardsigmoid(x), x * y]),
    "of a tensor's bounds": lambda x: torch.clamp(x + 3, torch.zeros(4), torch.full((4,), 6.0)) / 6,
}


@pytest.mark.parametrize("written", KEPT)
def test_another_function_stays(written: str) -> None:
    found = case(KEPT[written])
    program = capture(found.model(), found.example())
    outcome = RecognizeActivations().run(program)
    assert outcome.program is program
    assert outcome.changed == ()


def test_in_int8_it_runs_in_integers_as_the_operator_does() -> None:
    """MobileNetV3 as it was published: four operators of float between every two convolutions."""
    images = [torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    options = Quantize(precision="full")

    def kernels(swish: Function) -> tuple[list[str], list[str]]:
        def forward(model: torch.nn.Module, x: Tensor) -> Tensor:
            for name in ("c", "d", "e"):
                x = swish(model.get_submodule(name)(x))
            return model.get_submodule("f")(x)

        torch.manual_seed(0)
        model = Apply(forward, c=conv(3), d=conv(), e=conv(), f=conv()).eval()
        program = RecognizeActivations().run(capture(model, images[0])).program
        plan = planned(program, options)
        return list(plan.kernels.values()), [item.reason for item in plan.declined]

    assert kernels(SWISHES["scaled at the end"]) == kernels(F.hardswish)
    assert kernels(F.hardswish) == (["QLinearConv", "QLinearMul"] * 3 + ["QLinearConv"], [])
