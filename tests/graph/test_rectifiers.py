"""Rectifiers behind quantizers: in the integers, to the bit, and left where that would not be exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao

import fxcompress
from fxcompress.api.attribution import attribution
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import drop_quantizers
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.proof.integer import integer_bound
from fxcompress.runtime.inspection import executed
from tests.passes.models import Apply

X = torch.linspace(-6, 6, 48).reshape(2, 24)


def fake(x: Tensor, zero: int, scale: float = 0.03, high: int = 255) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, high)


def captured(function: Callable[[Tensor], Tensor]) -> Program:
    return capture(Apply(lambda _, x: function(x)).eval(), X)


def names(program: Program) -> list[str]:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return [str(node.target).split(".")[1] for node in calls]


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: fake(x, 0).relu(), ["relu", "quantize_per_tensor", "dequantize_per_tensor"]),
        (lambda x: fake(x, 100).relu(), ["quantize_per_tensor", "clamp", "dequantize_per_tensor"]),
        (lambda x: fake(x, 60, high=127).relu(), ["quantize_per_tensor", "clamp", "dequantize_per_tensor"]),
        (
            lambda x: nn.functional.relu6(fake(x, 100)),
            ["quantize_per_tensor", "clamp", "dequantize_per_tensor"],
        ),
        (
            lambda x: nn.functional.hardtanh(fake(x, 100), 0.0, 5.0),
            ["quantize_per_tensor", "clamp", "dequantize_per_tensor"],
        ),
        (
            lambda x: nn.functional.relu6(fake(x, 10)),
            ["quantize_per_tensor", "dequantize_per_tensor", "relu6"],
        ),
        (
            lambda x: nn.functional.hardtanh(fake(x, 100), -1.0, 1.0),
            ["quantize_per_tensor", "dequantize_per_tensor", "hardtanh"],
        ),
        (
            lambda x: (y := fake(x, 100)) + y.relu(),
            [*("quantize_per_tensor", "dequantize_per_tensor", "clamp", "dequantize_per_tensor", "add")],
        ),
    ],
)
def test_before_and_after(function: Callable[[Tensor], Tensor], wanted: list[str]) -> None:
    program = captured(function)
    well_formed(program)
    assert names(program) == wanted
    with torch.no_grad():
        assert torch.equal(program(X), function(X))


@pytest.mark.parametrize("zero", [0, 100])
def test_without_its_quantizer_the_rectifier_is_there_still(zero: int) -> None:
    program = captured(lambda x: fake(x, zero).relu())
    drop_quantizers(program)
    with torch.no_grad():
        assert torch.equal(program(X), X.relu())


class Unfused(nn.Sequential):
    """Rectifiers that are modules of their own, as eager training has them unless they were fused."""

    def __init__(self) -> None:
        first, second, third = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        stub, end = ao.QuantStub(), ao.DeQuantStub()
        super().__init__(stub, first, nn.ReLU(), second, nn.ReLU(), third, end)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
@pytest.mark.parametrize("backend", ["qnnpack", "x86"])
def test_every_convolution_runs_in_integers(backend: str) -> None:
    torch.manual_seed(0)
    model = Unfused().train()
    model.qconfig = ao.get_default_qat_qconfig(backend)
    model = ao.prepare_qat(model)
    for _ in range(3):
        model(torch.randn(4, 3, 12, 12))
    model = model.eval().apply(ao.disable_observer)
    x = torch.randn(2, 3, 12, 12)
    program = capture(model, x)
    with torch.no_grad():
        assert torch.equal(program(x), model(x))
    file = lower(program)
    assert [kernel.op_type for kernel in executed(file)].count("QLinearConv") == 3
    plain = program.copy()
    drop_quantizers(plain)
    integer_bound(plain, program, file, [x])
    assert all(row.snr_db > 20 for row in attribution(program, [x, x + 0.1]).layers)


integers = torch.ops.quantized_decomposed


def pair(x: Tensor, low: int, high: int, zero: int = 100, read: int = 100) -> Tensor:
    """A pair with a clamp of the integers between, read by another zero point perhaps."""
    whole = integers.quantize_per_tensor(x, 0.03, zero, 0, 255, torch.uint8).clamp(low, high)
    return integers.dequantize_per_tensor(whole, 0.03, read, 0, 255, torch.uint8)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (y := fake(x, 60, high=127)).relu() + y,
        lambda x: pair(x, 150, 200).relu(),
        lambda x: pair(x, 0, 255, read=0).relu(),
        lambda x: integers.dequantize_per_tensor(
            integers.quantize_per_tensor(x, 0.03, 100, 0, 255, torch.uint8).clamp(min=120),
            *(0.03, 100, 0, 255, torch.uint8),
        ).relu(),
    ],
    ids=["skip beside a short range", "clamped above zero", "another zero point", "one end"],
)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_what_would_not_be_exact_stays(function: Callable[[Tensor], Tensor], target: str) -> None:
    model = Apply(lambda _, x: function(x)).eval()
    result = fxcompress.optimize(model, X, target=target)
    with torch.no_grad():
        assert torch.equal(result.program(X), function(X))
