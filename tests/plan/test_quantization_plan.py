"""The plan as data: schemes follow from ranges and weights, it prints, it survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from fxcompress.analysis.calibration import calibrate
from fxcompress.errors import InputError, NotSupported
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.numerics.affine import asymmetric
from fxcompress.numerics.ranges import Range
from fxcompress.plan.quantization import plan_quantization, tensors_of_any_choice, tensors_to_observe
from fxcompress.plan.quantization_plan import QuantizationPlan, Quantize
from fxcompress.plan.unbounded import UNBOUNDED
from fxcompress.targets.onnxruntime import onnxruntime
from tests.passes.models import Apply, Chain
from tests.plan.quantized import VNNI, planned, quantized

IMAGE = (torch.randn(2, 4, 8, 8),)


def small() -> Chain:
    torch.manual_seed(0)
    return Chain(
        c=nn.Conv2d(4, 8, 3), r=nn.ReLU(), p=nn.MaxPool2d(2), g=nn.GELU(), f=nn.Flatten(), l=nn.Linear(72, 3)
    )


def test_scales_follow_from_ranges_and_weights():
    program = capture(small().eval(), IMAGE)
    ranges = {"x": Range(-1.0, 3.0), "relu": Range(0.0, 2.0), "flatten": Range(-0.1, 5.0)}
    assert tensors_to_observe(program, VNNI) == list(ranges)
    plan = plan_quantization(program, ranges, VNNI)
    for name, seen in ranges.items():
        assert plan.activations[name].affine == asymmetric(seen.low, seen.high)
    weight = walk.tensor(program, "c.weight")
    largest = weight.detach().abs().amax((1, 2, 3))
    torch.testing.assert_close(torch.tensor(plan.weights["c.weight"].scales), largest / 127)
    expected = torch.tensor(plan.weights["c.weight"].scales) * plan.activations["x"].scale
    assert torch.equal(torch.tensor(plan.biases["conv2d"].scales), expected)
    assert plan.biases["conv2d"].parameter == "c.bias"


def test_precision_says_every_operator_but_layout_in_float():
    _, plan, _ = quantized(small(), IMAGE)
    assert plan.precision == {"conv2d": "int8", "relu": "int8", "gelu": "float", "linear": "int8"}
    assert plan.intended == {"conv2d": "QLinearConv", "linear": "QGemm"}


def test_it_prints_as_a_table():
    _, plan, _ = quantized(small(), IMAGE)
    text = str(plan)
    assert text.splitlines()[0].startswith("int8 for onnxruntime: 3 operators in int8, 1 in float")
    for part in ("QLinearConv", "QGemm", "c.weight", "gelu", "no integer kernel", "models.py"):
        assert part in text


def test_json_returns_the_same_plan():
    _, plan, _ = quantized(small(), IMAGE)
    assert QuantizationPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("data", [[], {}, {"target": 3}, "plan", None])
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(InputError, match="not a quantization plan"):
        QuantizationPlan.from_dict(data)


def test_a_missing_or_broken_range_is_an_error():
    program = capture(small().eval(), IMAGE)
    with pytest.raises(InputError, match="no range for x"):
        plan_quantization(program, {}, VNNI)
    broken = {"x": Range(0.0, float("nan")), "relu": Range(0, 1), "flatten": Range(0, 1)}
    with pytest.raises(InputError, match="the range of x"):
        plan_quantization(program, broken, VNNI)


def test_what_reads_an_infinity_stays_in_float():
    program = capture(small().eval(), IMAGE)
    ranges = calibrate(program, [program.example.args], tensors_of_any_choice(program, VNNI))
    plan = plan_quantization(program, {**ranges, "x": Range(float("-inf"), 1.0)}, VNNI)
    (source,) = walk.placeholders(program)
    (first,) = source.users
    assert plan.precision[first.name] == "float"
    assert next(item.reason for item in plan.declined if item.node == first.name) == UNBOUNDED
    assert "int8" in plan.precision.values()


def test_weights_have_seven_bits_without_a_dot_product():
    program = capture(small().eval(), IMAGE)
    plan = planned(program, target=onnxruntime({"avx2"}))
    assert {scheme.limit for scheme in plan.weights.values()} == {64}
    exact = planned(program)
    for name, scheme in plan.weights.items():
        ratio = torch.tensor(scheme.scales) / torch.tensor(exact.weights[name].scales)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 127 / 64))


def test_static_tokens_want_an_integer_bias_and_dynamic_ones_a_float_one():
    model = Chain(l=nn.Linear(6, 5), g=nn.GELU()).eval()
    tokens = (torch.randn(2, 3, 6),)
    dynamic = planned(capture(model, tokens))
    assert dynamic.intended == {"linear": "MatMulIntegerToFloat"}
    assert dynamic.biases == {}
    fixed = Apply(lambda m, x: m.l(x.reshape(2, 3, 6)), l=nn.Linear(6, 5)).eval()
    static = planned(capture(fixed, tokens))
    assert static.intended == {"linear": "QGemm"}
    assert set(static.biases) == {"linear"}


def test_a_weight_serves_the_bias_of_every_reader():
    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.relu(model.l(x)), model.l.weight, model.b)

    layer = nn.Linear(6, 6)
    nn.init.constant_(layer.weight, 1e-8)
    model = Apply(forward, l=layer, b=torch.full((6,), 1e3))
    _, plan, _ = quantized(model, (torch.randn(4, 6),))
    for name in ("linear", "linear_1"):
        bias = 1e3 if name == "linear_1" else layer.bias.detach().abs().max().item()
        assert bias / min(plan.biases[name].scales) < 2**31


def test_options_are_checked():
    with pytest.raises(NotSupported, match="no mode 'int4'"):
        Quantize("int4")
    assert Quantize().needs_calibration
    assert not Quantize("float16").needs_calibration


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("precision", "half"),
        ("calibrator", "median"),
        ("weight_range", "percentile"),
        ("rounding", "up"),
        ("equalize", "yes"),
        ("smooth", 0.5),
        ("correct_bias", 2),
        ("exclude", "head"),
        ("exclude", (1,)),
        ("block_size", 48),
        ("block_size", 8),
        ("block_size", True),
    ],
)
def test_options_of_another_kind_are_refused_by_name(option: str, value: Any):
    with pytest.raises(InputError, match=option):
        Quantize(**{option: value})


def test_options_exclude():
    program = capture(small().eval(), IMAGE)
    plan = planned(program, Quantize(exclude=("l.*",)))
    assert set(plan.weights) == {"c.weight"}


def test_full_precision_takes_what_the_target_finds_too_slow():
    program = capture(Chain(c=nn.Conv2d(4, 8, 3, groups=2)).eval(), IMAGE)
    assert planned(program).precision == {"conv2d": "float"}
    assert planned(program, Quantize(precision="full")).precision == {"conv2d": "int8"}
