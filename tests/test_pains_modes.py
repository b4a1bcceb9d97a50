"""Pains of quantization modes (peers.md), by the issues that tell of them: what users get here instead."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.api.result import Result
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower
from fxcompress.passes.change_floats import ChangeFloats
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.passes.quantize_weights import QuantizeWeights
from fxcompress.plan.quantization_plan import Quantize
from fxcompress.runtime.inspection import executed
from fxcompress.runtime.session import open_session, run
from tests.graph.prepared import IMAGES, by_fx, eager

WIDTH = 256


class Encoder(nn.Module):
    """A transformer block on tokens: attention and a feed-forward part, each with its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(part) for part in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.first(x + self.out(y))
        z: Tensor = self.second(x + self.down(nn.functional.gelu(self.up(x))))
        return z

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (4, -1)).transpose(1, 2)


class Classifier(nn.Module):
    """Convolutions, a pooling, and a linear large enough to be quantized at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 128, 3)
        self.head = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return y


@cache
def encoder() -> Program:
    torch.manual_seed(0)
    return capture(Encoder().eval(), torch.randn(2, 16, WIDTH))


@cache
def float_size() -> int:
    return len(lower(encoder()).SerializeToString())


def kinds(model: onnx.ModelProto) -> list[str]:
    return [item.op_type for item in executed(model)]


def test_pain_06_a_dynamically_quantized_cnn_loads() -> None:
    """ort#12362 ort#6430: ConvInteger for uint8 and int8 is not implemented, and the file does not load.

    (onnxruntime 1.31 loads it, and takes four times as long as in float.)
    """
    program = capture(Classifier().eval(), torch.randn(2, 3, 12, 12))
    outcome = QuantizeDynamically().run(program)
    model = lower(outcome.program)
    assert [item.site for item in outcome.declined] == ["conv2d", "conv2d_1"]
    assert all("ConvInteger" in item.reason for item in outcome.declined)
    assert "ConvInteger" not in {node.op_type for node in model.graph.node}
    assert "DynamicQuantizeMatMul" in kinds(model)
    run(open_session(model), {"x": np.zeros((1, 3, 12, 12), np.float32)})


@pytest.mark.parametrize("build", [eager, pytest.param(by_fx, marks=pytest.mark.slow)])
def test_pain_08_models_quantized_in_torch_become_onnx(build) -> None:
    """pytorch#143474 ao#3392: models quantized by torch.ao cannot be exported."""
    model = build()
    result = fxcompress.optimize(model, IMAGES)
    assert kinds(result.onnx).count("QLinearConv") == 2
    names = [item.name for item in result.report.candidates]
    assert names == ["original", "int8, as it came", "float, without its quantizers"]
    assert result.report.operators is not None
    assert result.report.operators.fallbacks == ()
    assert set(result.plan.precision.values()) <= {"int8", "float"}
    assert "integer-bound" in {proof.name for proof in result.report.proofs}
    (name,) = (value.name for value in result.onnx.graph.input)
    with torch.no_grad():
        wanted = model(IMAGES).numpy()
    (found,) = run(result.session(), {name: IMAGES.numpy()}).values()
    steps = np.abs(wanted - found) / last_step(result.program)
    assert steps.max() <= 4  # a rounding that falls the other way in the middle is several at the end
    assert steps.mean() <= 0.7


def last_step(program: Program) -> float:
    """The scale of the last quantizer."""
    return float(program.graph.output_node().all_input_nodes[0].args[1])


def test_pain_09_what_qat_learned_is_not_lost_on_export() -> None:
    """pytorch#120166 pytorch#143497: the exported model saturates elsewhere than the trained one."""
    model, program = eager(), capture(eager(), IMAGES)
    session = open_session(lower(program))
    for loudness in (0.1, 1.0, 10.0):
        x = loudness * IMAGES
        with torch.no_grad():
            wanted = model(x).numpy()
        (found,) = run(session, {"x": x.numpy()}).values()
        assert np.abs(wanted - found).max() <= 0.006


@pytest.mark.parametrize(
    ("stage", "share"),
    [
        (QuantizeDynamically(), 0.27),
        (QuantizeWeights(bits=8), 0.30),
        (QuantizeWeights(bits=4), 0.18),
        (ChangeFloats("float16"), 0.52),
        (ChangeFloats("bfloat16"), 0.52),
    ],
)
def test_pain_10_a_quantized_file_is_smaller(stage, share: float) -> None:
    """MCT#960 MCT#273 sparseml#2164: the "quantized" file has the size of the float one."""
    model = lower(stage.run(encoder()).program)
    assert len(model.SerializeToString()) < share * float_size()


def test_pain_10_a_statically_quantized_file_is_smaller() -> None:
    """MCT#960 MCT#273 sparseml#2164, of the mode that most people mean."""
    options = fxcompress.Quantize(precision="full", correct_bias=False)
    result = fxcompress.optimize(encoder(), quantize=options, calibration=[torch.randn(4, 16, WIDTH)])
    assert len(result.onnx.SerializeToString()) < 0.30 * float_size()


def test_pain_13_modes_run_in_the_oldest_opset_they_can_be_written_in() -> None:
    """ort#20559 ort#23602: files newer than the runtime; all modes are in operators of opset 18 or older."""
    program = capture(nn.Linear(64, 64).eval(), torch.randn(2, 64))
    for stage in (QuantizeDynamically(), QuantizeWeights(bits=4), ChangeFloats("float16")):
        model = lower(stage.run(program).program, opset=18)
        assert {item.domain: item.version for item in model.opset_import}[""] == 18
        open_session(model)


@cache
def in_mode(mode: str) -> Result:
    return fxcompress.optimize(encoder(), quantize=mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int8-dynamic", "int8-weights", "int4-weights", "float16", "bfloat16"])
def test_pain_15_no_mode_is_slower_than_float_and_none_hides_it(mode: str) -> None:
    """ort#16778 ort#23004 ort#29849: float16 is 2-4 times slower on the CPU, int4 10 times."""
    result = in_mode(mode)
    report = result.report
    assert report.latency_ratio is not None
    assert report.latency_ratio.low <= 1.02
    tried = [item for item in report.candidates if item.name.startswith(mode)]
    assert tried
    assert all(item.latency_ms and item.reason for item in tried)
    chosen = next(item for item in report.candidates if item.chosen)
    if not chosen.name.startswith(mode):
        assert any(f"{mode} was asked for" in note for note in report.notes)
    assert len(report.proofs) >= 1


def test_pain_15_bfloat16_that_the_runtime_cannot_compute_is_stored_only() -> None:
    """ort#16778: the CPU provider has no bfloat16 kernels; a file that computes in it does not load."""
    stored = lower(ChangeFloats("bfloat16").run(encoder()).program)
    assert set(kinds(stored)) & {"MatMul", "FusedMatMul", "Gemm"}
    with pytest.raises(fxcompress.CompressError, match="not usable"):
        lower(ChangeFloats("bfloat16", "all").run(encoder()).program)


def test_pain_15_accuracy_level_4_is_written_down_and_can_be_declined() -> None:
    """ort#29849: accuracy_level 4 makes int4 fast, rounds the inputs, and can flip the argmax."""
    exact, rounded = (
        QuantizeWeights(bits=4, activations=kind).run(encoder()).program for kind in ("float", "int8")
    )
    x = encoder().flat_example()[0]
    levels = []
    for program in (exact, rounded):
        model = lower(program)
        levels.append(
            {a.i for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"}
        )
        (found,) = run(open_session(model), {"x": x.numpy()}).values()
        with torch.no_grad():
            wanted = program(x).numpy()
        assert np.linalg.norm(wanted - found) <= 1e-3 * np.linalg.norm(wanted)
    assert levels == [{1}, {4}]


@pytest.mark.slow
def test_float16_that_overflows_is_refused_with_the_operator() -> None:
    """ort#16778: half precision that becomes infinite is found before anyone gets the file."""

    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b((self.a(x) * 1000).square().mean(-1, keepdim=True).sqrt() * x)
            return y

    model, x = Loud().eval(), torch.randn(2, 64)
    with pytest.raises(fxcompress.CompressError, match=r"float16 overflows at (pow|square)") as refusal:
        fxcompress.optimize(model, x, quantize=Quantize(mode="float16", precision="full"))
    assert refusal.value.source is not None
    result = fxcompress.optimize(model, x, quantize="float16", objective="size")
    assert [item.name for item in result.report.candidates if item.chosen] == ["float16 weights"]
    assert any("overflows" in note for note in result.report.notes)


@pytest.mark.slow
def test_a_cnn_in_dynamic_mode_says_what_stays_in_float() -> None:
    result = fxcompress.optimize(
        Classifier().eval(),
        torch.randn(2, 3, 12, 12),
        quantize=Quantize(mode="int8-dynamic", precision="full"),
    )
    assert result.plan.precision == {"linear": "int8", "conv2d": "float", "conv2d_1": "float"}
    entry = next(item for item in result.report.passes if item.name == "quantize-dynamically")
    assert {item.site for item in entry.declined} == {"conv2d", "conv2d_1"}
    assert result.report.operators is not None
    assert result.report.operators.executed == 1


@pytest.mark.parametrize("option", [{"calibrator": "mse"}, {"rounding": "adaptive"}, {"smooth": True}])
def test_options_that_a_mode_has_no_use_for_are_refused(option: dict) -> None:
    with pytest.raises(fxcompress.NotSupported, match="is for static int8"):
        fxcompress.optimize(encoder(), quantize=Quantize(mode="int8-dynamic", **option))
