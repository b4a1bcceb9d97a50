"""What users of other quantizers live with (peers.md), one test per complaint, named by issue numbers.

ort is microsoft/onnxruntime. Quantization modes beside static int8 are in `test_pains_modes`, memory of
calibration (pain 12) in `tests/analysis/test_calibration.py` and `benchmarks/calibration_memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import InputError, ProofError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.lowering import opsets
from fxcompress.lowering.lower import lower
from fxcompress.passes.contract import Outcome
from fxcompress.passes.fold_parameters import FoldParameters
from fxcompress.plan import quantization
from fxcompress.plan.quantization_plan import Quantize
from fxcompress.plan.reached import UNREACHED
from fxcompress.proof.integer import integer_bound
from fxcompress.proof.structure import check_structure, structural_faults
from fxcompress.runtime.inspection import executed
from fxcompress.runtime.session import SessionError, open_session, run
from fxcompress.targets.onnxruntime import VARIANTS, onnxruntime
from fxcompress.targets.target import Scheme, Target
from fxcompress.targets.tensorrt import tensorrt
from tests.passes.models import Chain
from tests.plan.quantized import VNNI, quantized
from tests.targets.forms import around, conv, pair, squeeze_excitation

IMAGES = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


class Gated(nn.Module):
    """What int8 loses on in ONNX Runtime: thin depthwise layers, hard-swish, squeeze-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.out, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.deep(F.hardswish(self.stem(x))))
        gate = F.hardsigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.hardswish(self.out(x * gate)).mean((2, 3)))


@pytest.mark.slow
def test_pain_04_int8_that_is_slower_than_float_is_not_handed_out() -> None:
    """ort#20052 ort#26143 ort#17389 ort#6732: the quantized model is slower than the original."""
    torch.manual_seed(0)
    result = fxcompress.optimize(Gated().eval(), IMAGES[0], quantize="int8", calibration=IMAGES)
    ratio = result.report.latency_ratio
    assert ratio is not None
    assert ratio.low <= 1.02
    assert all(item.reason for item in result.report.candidates)
    tried = {item.name: item.latency_ms for item in result.report.candidates}
    assert tried["int8"] is not None  # there was one to be handed out


@pytest.mark.parametrize("build", [squeeze_excitation, pair(lambda a, b: torch.relu(a + b))])
def test_pain_05_tensorrt_gets_pairs_where_its_kernels_fuse(build: Callable[[], nn.Module]) -> None:
    """NVIDIA/Model-Optimizer#80 TensorRT#4554: INT8 is slower than FP16 because pairs stand in the way."""
    _, plan, after = quantized(build(), (torch.randn(3, 16, 8, 8),), target=tensorrt())
    model = lower(after)
    pairs = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    readers = {node.op_type for node in model.graph.node if pairs & {*node.input}}
    assert "Conv" in readers
    assert readers <= {"Conv", "Add"}
    assert check_structure(model, tensorrt()) == len(plan.activations)


@pytest.mark.parametrize(
    "build",
    [conv, lambda: conv(groups=16), lambda: Chain(c=conv(64, 64, groups=4)), lambda: conv(bias=False)],
    ids=["plain", "depthwise", "grouped", "no bias"],
)
def test_pain_06_convolutions_with_signed_weights_load(build: Callable[[], nn.Module]) -> None:
    """ort#12362 ort#6430: a quantized CNN does not load, ConvInteger has no u8s8 kernel."""
    torch.manual_seed(0)
    model = build()
    example = (torch.randn(2, 64 if "Chain" in str(model) else 16, 8, 8),)
    before, _, after = quantized(model, example)
    file = lower(after)
    stored = {numpy_helper.to_array(item).dtype for item in file.graph.initializer}
    assert np.dtype(np.int8) in stored
    assert "QLinearConv" in {item.op_type for item in executed(file)}
    assert "ConvInteger" not in {node.op_type for node in file.graph.node}
    integer_bound(before, after, file, example)


def saturating(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What x86 without VNNI computes: products of u8 and s8 are added in pairs, in 16 bits, saturating."""
    products = x.astype(np.int32)[:, None, :] * weight.astype(np.int32)[None]
    pairs = products.reshape(*products.shape[:-1], -1, 2).sum(-1)
    return pairs.clip(-(2**15), 2**15 - 1).sum(-1)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_pain_07_weights_leave_room_where_sums_saturate(variant) -> None:
    """ort#11415 ort#6545: accuracy collapses (MobileNetV3, 69 % to 54 %) where pairs of products saturate."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 8)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.sign())  # every weight at its limit
    _, _, after = quantized(layer, (torch.rand(4, 32),), target=onnxruntime(variant.needs))
    whole = next(t.numpy() for name, t in after.module.state_dict().items() if name.endswith("_int8"))
    worst = np.full((1, 32), 255, np.uint8)
    exact = worst.astype(np.int32) @ whole.astype(np.int32).T
    if variant.weight_bits == 7:
        assert (saturating(worst, whole) == exact).all()
    else:  # the control: on such a CPU these weights would not do
        assert "arm" in variant.name or "vnni" in variant.name or variant.name == "amx"
        assert (saturating(worst, whole) != exact).any()


def test_pain_07_per_channel_scales_keep_thin_channels_beside_wide_ones() -> None:
    """ort#11415: with one scale per tensor, the thin channels of a depthwise layer round to nothing."""
    torch.manual_seed(0)
    layer = conv(groups=16, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 1, 16).reshape(-1, 1, 1, 1))
    example = (torch.randn(2, 16, 8, 8),)
    before, _, after = quantized(layer, example)
    whole = next(t for name, t in after.module.state_dict().items() if name.endswith("_int8"))
    assert all(channel.abs().max() == VNNI.weight_limit for channel in whole)
    integer_bound(before, after, lower(after), example)


@pytest.mark.parametrize(("opset", "ir"), [(20, 9), (17, 8), (14, 7)])
def test_pain_13_files_are_written_for_the_runtime_that_is_installed(
    opset: int, ir: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ort#20559 ort#23602: the file has a newer opset or IR version than the runtime reads."""
    monkeypatch.setattr(opsets, "newest_opset", lambda: opset)
    monkeypatch.setattr(opsets, "newest_ir", lambda: ir)
    _, _, after = quantized(around(torch.relu)(), (torch.randn(3, 16, 8, 8),))
    model = lower(after)
    assert model.ir_version <= ir
    assert next(item.version for item in model.opset_import if item.domain == "") <= opset
    assert [item.op_type for item in executed(model)].count("QLinearConv") == 2
    with pytest.raises(InputError, match=f"opset {opset + 1} cannot be written"):
        lower(after, opset=opset + 1)


def test_pain_16_a_pass_that_changes_results_is_caught_and_nothing_is_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OnnxSlim#277 OnnxSlim#15: graph optimizers change what the model computes."""

    def wrong(_: FoldParameters, program: Program) -> Outcome:
        copy = program.copy()
        edit.set_tensor(copy, "0.weight", 1.001 * walk.tensor(copy, "0.weight").detach())
        return Outcome(copy, ("0.weight",))

    monkeypatch.setattr(FoldParameters, "run", wrong)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with pytest.raises(ProofError, match="away from the program; rounding explains"):
        fxcompress.optimize(model, IMAGES[0])


# --- calibration data that people really have --------------------------------------------------------------


def test_a_nan_in_the_data_names_the_batch_and_the_operator() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    spoilt = [*IMAGES[:2], IMAGES[2].clone()]
    spoilt[2][0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN") as caught:
        fxcompress.optimize(model, IMAGES[0], quantize="int8", calibration=spoilt)
    assert "batch 2" in str(caught.value)


class Logarithm(nn.Module):
    """The logarithm of numbers that may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.log(self.first(x)))


def test_a_nan_that_the_model_makes_names_the_users_line() -> None:
    model = Logarithm().eval()
    with pytest.raises(InputError, match="NaN") as caught:
        fxcompress.optimize(model, IMAGES[0], quantize="int8", calibration=IMAGES)
    assert "test_pains_quantization.py" in str(caught.value)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0], ids=["zero", "positive", "negative"])
def test_constant_activations_come_back_as_they_are(value: float) -> None:
    """A dead channel, an all-zero image, a bias alone: a range of one number has no width to divide by."""
    torch.manual_seed(0)
    first = conv()
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(value)
    example = (torch.randn(3, 16, 8, 8),)
    before, plan, after = quantized(Chain(c=first, d=conv()), example)
    assert all(np.isfinite(scheme.scale) and scheme.scale > 0 for scheme in plan.activations.values())
    file = lower(after)
    (found,) = run(open_session(file), {after.signature.inputs[0]: example[0].numpy()}).values()
    with torch.no_grad():
        exact = before(*example).numpy()
    assert np.linalg.norm(found - exact) <= 0.02 * np.linalg.norm(exact)


class Experts(nn.Module):
    """Two experts behind a gate; the data below never opens the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv(3, 16), conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        chosen = (x.amax((1, 2, 3), keepdim=True) > 50.0).to(x.dtype)
        return self.first(y * (1.0 - chosen)) + self.second(y * chosen)


def test_a_layer_that_the_data_never_reached_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of nothing but zeros would round to zero whatever arrives after deployment."""
    torch.manual_seed(0)
    model = Experts().eval()
    result = fxcompress.optimize(model, IMAGES[0], quantize=Quantize(precision="full"), calibration=IMAGES)
    plan = result.plan.quantization
    assert plan is not None
    (said,) = (item for item in plan.declined if item.reason == UNREACHED)
    assert said.node == "conv2d_2"
    assert "test_pains_quantization.py" in (said.source or "")
    assert {plan.precision["conv2d"], plan.precision["conv2d_1"]} == {"int8"}
    unseen = 60.0 * torch.rand(4, 3, 12, 12)  # opens the second expert
    (found,) = run(result.session(), {result.program.signature.inputs[0]: unseen.numpy()}).values()
    monkeypatch.setattr(quantization, "reached", lambda placement, *_: placement)  # the control
    _, _, blind = quantized(model, (IMAGES[0],))
    with torch.no_grad():
        assert np.linalg.norm(blind(unseen).numpy() - found) > 0.3 * np.linalg.norm(found)


def test_what_an_idle_layer_leaves_behind_was_observed() -> None:
    """Pooling between two idle convolutions: sparing the second needs a range that only int8 would share."""
    torch.manual_seed(0)
    model = Experts()
    model.second = nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(3, 1, 1), conv())
    result = fxcompress.optimize(
        model.eval(), IMAGES[0], quantize=Quantize(precision="full"), calibration=IMAGES
    )
    plan = result.plan.quantization
    assert plan is not None
    assert len([item for item in plan.declined if item.reason == UNREACHED]) >= 1


def test_activation_zero_points_are_scalars_and_per_channel_ones_are_refused() -> None:
    """NNCF's files for MobileNetV2 and V3 do not run in ONNX Runtime: "input zero point must be a scalar"."""
    torch.manual_seed(0)
    example = (torch.randn(2, 16, 8, 8),)
    _, _, after = quantized(Chain(c=conv(), r=nn.ReLU(), d=conv(groups=16)), example)
    model = lower(after)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    quantizes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert all(stored[node.input[1]].size == stored[node.input[2]].size == 1 for node in quantizes)
    broken = per_channel(model)
    assert any("16 scales: activations have one" in fault for fault in structural_faults(broken, VNNI))
    assert integer_convolutions(model) == 2
    assert integer_convolutions(broken) < 2
    with pytest.raises(InputError, match="one scale per tensor"):
        Target("mine", 8, {}, VNNI.batched_linear, activations=Scheme("uint8", per_channel=True))


def integer_convolutions(model: onnx.ModelProto) -> int:
    """How many the runtime executes in integers; none where it refuses the file."""
    try:
        return [item.op_type for item in executed(model)].count("QLinearConv")
    except SessionError:
        return 0


def per_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file as NNCF writes it: the depthwise convolution reads an activation with 16 zero points."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    nodes = list(broken.graph.node)
    depthwise = [node for node in nodes if node.op_type == "Conv"][1]
    dequantize = next(node for node in nodes if depthwise.input[0] in node.output)
    quantize = next(node for node in nodes if dequantize.input[0] in node.output)
    scale = next(numpy_helper.to_array(i) for i in broken.graph.initializer if i.name == quantize.input[1])
    scales, zeros = np.full(16, scale, np.float32), np.arange(16, dtype=np.uint8)
    broken.graph.initializer.append(numpy_helper.from_array(scales, "scales"))
    broken.graph.initializer.append(numpy_helper.from_array(zeros, "zeros"))
    for node in (quantize, dequantize):
        node.input[1], node.input[2] = "scales", "zeros"
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", 1))
    return broken
