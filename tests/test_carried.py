"""Models that come quantized: what is refused, what is measured of them, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

import fxcompress
from fxcompress.api.attribution import attribution
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.proof.structure import structural_faults
from fxcompress.targets.catalog import resolve
from tests.graph.prepared import IMAGES, eager, residual

integers = torch.ops.quantized_decomposed


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: fxcompress.optimize(model, IMAGES, prune=0.5), "cannot be removed"),
        (lambda model: fxcompress.prune_gradually(model, IMAGES, calibration=[IMAGES]), "cannot be removed"),
        (lambda model: fxcompress.optimize(model, IMAGES, quantize="int8", calibration=[IMAGES]), "twice"),
        (lambda model: fxcompress.optimize(model, IMAGES, quantize="float16"), "twice"),
    ],
)
def test_what_cannot_be_done_to_it_is_said_at_once(call: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(InputError, match=r"carries fake quantization[\s\S]*" + said) as caught:
        call(eager())
    assert "hint" in str(caught.value)


class Rows(nn.Module):
    """Two linears over rows of three dimensions, the batch fixed, as pt2e writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        for name, layer in (("up", self.up), ("down", self.down)):
            self.register_buffer(f"{name}_scales", layer.weight.detach().abs().amax(1) / 127)
            self.register_buffer(f"{name}_zeros", torch.zeros(layer.out_features, dtype=torch.int32))

    def linear(self, x: Tensor, name: str, scale: float, zero: int) -> Tensor:
        layer, scales, zeros = (getattr(self, name + end) for end in ("", "_scales", "_zeros"))
        weight = torch.fake_quantize_per_channel_affine(layer.weight, scales, zeros, 0, -127, 127)
        x = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
        return nn.functional.linear(x, weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(1, 12, 32)
        return self.linear(self.linear(x, "up", 0.03, 128).relu(), "down", 0.01, 0)


def test_linears_of_three_dimensions_run_in_integers() -> None:
    torch.manual_seed(0)
    model, x = Rows().eval(), torch.randn(1, 12, 32)
    result = fxcompress.optimize(model, x)
    operators = result.report.operators
    assert operators is not None
    assert (operators.intended, operators.executed, operators.fallbacks) == (2, 2, ())
    stored = {item.name: item.data_type for item in result.onnx.graph.initializer}
    assert [stored[f"{name}.bias_int32"] for name in ("up", "down")] == [onnx.TensorProto.INT32] * 2
    assert result.report.output_error is None or result.report.output_error.relative < 0.01


def test_its_own_quantization_is_what_sensitivity_measures() -> None:
    found = attribution(capture(residual(), IMAGES), [IMAGES, IMAGES + 0.1])
    assert {row.node for row in found.layers} >= {"conv2d", "conv2d_1", "linear"}
    assert all(0.0 <= row.alone < 0.2 for row in found.layers)
    assert all(row.snr_db > 20 for row in found.layers)


def symmetric() -> nn.Module:
    """Quantization-aware training as TensorRT wants it: int8 activations around zero, weights by channel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        ao.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), ao.DeQuantStub()
    ).train()
    model.qconfig = ao.QConfig(
        activation=ao.FakeQuantize.with_args(
            observer=ao.MovingAverageMinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        ),
        weight=ao.default_per_channel_weight_fake_quant,
    )
    model = ao.prepare_qat(model)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8))
    return model.eval().apply(ao.disable_observer)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_symmetric_activations_stay_signed_where_the_target_reads_them_so() -> None:
    model = symmetric()
    result = fxcompress.optimize(model, IMAGES, target="tensorrt")
    quantizers = [node for node in result.onnx.graph.node if node.op_type == "QuantizeLinear"]
    stored = {item.name: item for item in result.onnx.graph.initializer}
    zeros = [stored[node.input[2]] for node in quantizers]
    assert {item.data_type for item in zeros} == {onnx.TensorProto.INT8}
    assert all(onnx.numpy_helper.to_array(item) == 0 for item in zeros)
    assert structural_faults(result.onnx, resolve("tensorrt")) == ()
    with torch.no_grad():
        assert torch.equal(result.program(IMAGES), model(IMAGES))


def test_what_does_not_fit_the_target_is_said() -> None:
    result = fxcompress.optimize(eager(), IMAGES, target="tensorrt")
    assert any("is not what tensorrt runs in integers" in note for note in result.report.notes)


def test_ranges_are_clamped_before_they_are_quantized_where_integers_cannot_be() -> None:
    """0..127, the default of x86, far beyond the calibrated range."""
    model = eager()
    result = fxcompress.optimize(model, IMAGES, target="openvino")
    faults = structural_faults(result.onnx, resolve("openvino"))
    assert not any("Clip" in fault for fault in faults)
    for loudness in (0.1, 1.0, 10.0):
        x = loudness * IMAGES
        with torch.no_grad():
            torch.testing.assert_close(result.program(x), model(x), rtol=0, atol=0.003)


class Dynamic(nn.Module):
    """Two linears whose inputs find their scale in every call, as `is_dynamic` quantizers and pt2e do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        for place, layer in enumerate(self.layers):
            scales = layer.weight.detach().abs().amax(1) / 127
            whole = (layer.weight.detach() / scales[:, None]).round().to(torch.int8)
            self.register_buffer(f"whole{place}", whole)
            self.register_buffer(f"scales{place}", scales)
            self.register_buffer(f"zeros{place}", torch.zeros(64, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            whole, scales, zeros = (getattr(self, f"{name}{place}") for name in ("whole", "scales", "zeros"))
            weight = integers.dequantize_per_channel(whole, scales, zeros, 0, -127, 127, torch.int8)
            scale, zero = integers.choose_qparams.tensor(x, 0, 255, 1e-7, torch.uint8)
            scheme = (scale, zero, 0, 255, torch.uint8)
            x = integers.dequantize_per_tensor.tensor(
                integers.quantize_per_tensor.tensor(x, *scheme), *scheme
            )
            x = nn.functional.linear(x, weight, layer.bias).relu()
        return x


def test_scales_that_are_found_at_run_time_are_proven_and_counted() -> None:
    torch.manual_seed(0)
    model, x = Dynamic().eval(), torch.randn(8, 64)
    result = fxcompress.optimize(model, x)
    assert {proof.name for proof in result.report.proofs} >= {"product-bound"}
    operators = result.report.operators
    assert operators is not None
    assert (operators.intended, operators.executed) == (2, 2)
    assert set(result.plan.quantization.kernels.values()) == {"DynamicQuantizeMatMul"}
    with torch.no_grad():
        torch.testing.assert_close(result.program(x), model(x))


class Twice(nn.Module):
    """One convolution called twice: its weight is rounded twice, with one set of scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("scales", self.conv.weight.detach().abs().amax((1, 2, 3)) / 127)
        self.register_buffer("zeros", torch.zeros(3, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        for scale in (0.03, 0.02):
            x = torch.fake_quantize_per_tensor_affine(x, scale, 128, 0, 255)
            weight = torch.fake_quantize_per_channel_affine(
                self.conv.weight, self.scales, self.zeros, 0, -127, 127
            )
            x = nn.functional.conv2d(x, weight, self.conv.bias, padding=1)
        return x


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_a_layer_that_is_called_twice_is_taken_in(target: str) -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    result = fxcompress.optimize(model, IMAGES, target=target)
    with torch.no_grad():
        assert torch.equal(result.program(IMAGES), model(IMAGES))
