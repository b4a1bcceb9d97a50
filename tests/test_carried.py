"""Models that come quantized: what is refused, what is measured of them, and how they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.api.attribution import attribution
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from tests.graph.prepared import IMAGES, eager, residual


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
