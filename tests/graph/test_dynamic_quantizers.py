"""Models that find the scales of their activations at run time: captured so, and lowered so."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.quantization import quantize_fx

from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import drop_quantizers, is_quantized
from fxcompress.lowering.lower import lower
from fxcompress.proof.integer import integer_bound

DYNAMIC = ao.fake_quantize.default_dynamic_fake_quant
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
integers = torch.ops.quantized_decomposed


class Mixed(nn.Module):
    """Linears and a convolution; what each reads is quantized at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.conv = nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv1d(1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = self.second(x) + self.conv(x.unsqueeze(1)).flatten(1)
        return y


def trained(weight: Any) -> nn.Module:
    """`prepare_qat` with activations that are quantized at run time."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Mixed().train()
        model.qconfig = ao.QConfig(activation=DYNAMIC, weight=weight)
        model = ao.prepare_qat(model)
        for _ in range(3):
            model(torch.randn(4, 8))
    return model.eval()


def session_output(program: Program, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(lower(program).SerializeToString())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


WEIGHTS = {"one": ao.default_weight_fake_quant, "channels": ao.default_per_channel_weight_fake_quant}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=list(WEIGHTS))
def test_dynamic_scales_are_found_at_run_time(weight: Any) -> None:
    model = trained(weight)
    program = capture(model, X)
    assert any("3 of them as found at run time" in note for note in program.notes)
    for scale in (0.1, 1.0, 20.0):
        with torch.no_grad():
            wanted, found = model(scale * X), program(scale * X)
        room = 0.02 * float(wanted.abs().max())
        assert float((wanted - found).abs().max()) <= room
        assert float((session_output(program, scale * X) - found).abs().max()) <= room


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=list(WEIGHTS))
def test_products_are_those_of_integers_and_a_convolution_reads_floats(weight: Any) -> None:
    operators = [node.op_type for node in lower(capture(trained(weight), X)).graph.node]
    assert operators.count("DynamicQuantizeLinear") == 3
    assert operators.count("MatMulInteger") == 2
    assert operators.count("Conv") == 1


def test_dynamic_scales_are_proven_against_the_same_without_them() -> None:
    program = capture(trained(ao.default_weight_fake_quant), X)
    assert is_quantized(program)
    plain = program.copy()
    drop_quantizers(plain)
    assert not any(node.target is integers.choose_qparams.tensor for node in plain.graph.nodes)
    assert np.isfinite(integer_bound(plain, program, lower(program), [X]).error)


def test_a_dynamic_quantizer_with_its_observer_off_keeps_its_scale() -> None:
    """It no longer looks at data, in PyTorch either."""
    model = trained(ao.default_weight_fake_quant).apply(ao.disable_observer)
    program = capture(model, X)
    assert not any(node.target is integers.choose_qparams.tensor for node in program.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(program(9 * X), model(9 * X), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quant_min": 0, "quant_max": 127}, "0..127"),
        ({"quant_min": 0, "quant_max": 255, "qscheme": torch.per_tensor_symmetric}, "per_tensor_symmetric"),
    ],
)
def test_dynamic_scales_that_no_runtime_finds_are_refused(given: dict[str, Any], said: str) -> None:
    quantizer = ao.FakeQuantize(
        observer=ao.MovingAverageMinMaxObserver,
        dtype=torch.quint8,
        is_dynamic=True,
        averaging_constant=1,
        **given,
    )
    with pytest.raises(InputError, match=rf"1 finds its scale at run time \({said}[\s\S]*int8-dynamic"):
        capture(nn.Sequential(nn.Linear(8, 4), quantizer).eval(), X)


def dynamic_reference(engine: str) -> nn.Module:
    """`convert_to_reference_fx`, which asks the engine whether to reduce the range."""
    torch.manual_seed(0)
    before = torch.backends.quantized.engine
    mapping = ao.QConfigMapping().set_global(ao.default_dynamic_qconfig)
    try:
        torch.backends.quantized.engine = engine
        return quantize_fx.convert_to_reference_fx(quantize_fx.prepare_fx(Mixed().eval(), mapping, (X,)))
    finally:
        torch.backends.quantized.engine = before


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize_per_tensor")
def test_a_dynamic_reference_model_is_taken_in() -> None:
    model = nn.Sequential(nn.Identity(), dynamic_reference("qnnpack")).eval()
    program = capture(model, X)
    assert any("2 of them as found at run time" in note for note in program.notes)
    with torch.no_grad():
        wanted = model(X)
        torch.testing.assert_close(program(X), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(session_output(program, X), wanted, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize_per_tensor")
def test_a_dynamic_reference_model_of_a_reduced_range_is_refused() -> None:
    said = r"quantize_per_tensor_dynamic quantizes to 0\.\.127 at run time[\s\S]*qnnpack"
    with pytest.raises(InputError, match=said):
        capture(dynamic_reference("fbgemm"), X)


class Ranged(nn.Module):
    """The operators that exported programs bring, with a range."""

    def __init__(self, low: int, high: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.form = (low, high, dtype)

    def forward(self, x: Tensor) -> Tensor:
        low, high, dtype = self.form
        scale, zero = integers.choose_qparams.tensor(x, low, high, 1e-7, dtype)
        whole = integers.quantize_per_tensor.tensor(x, scale, zero, *self.form)
        y: Tensor = integers.dequantize_per_tensor.tensor(whole, scale, zero, *self.form)
        return y


def test_integers_from_below_zero_on_are_found_at_run_time_too() -> None:
    program = capture(Ranged(-128, 127, torch.int8).eval(), X)
    with torch.no_grad():
        torch.testing.assert_close(session_output(program, X), program(X))


def test_a_shorter_range_in_a_graph_is_refused() -> None:
    with pytest.raises(InputError, match=r"0\.\.127[\s\S]*reduce_range=False"):
        capture(Ranged(0, 127, torch.uint8).eval(), X)
