"""Models that carry fake quantization: captured, their scales kept, their weights stored as integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

from fxcompress.analysis.cost import cost
from fxcompress.errors import CaptureError, InputError
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import DEQUANTIZE, QUANTIZE, drop_quantizers, is_quantized
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.proof.integer import integer_bound
from tests.graph.prepared import FORMS, IMAGES, eager, faked

STEP = 0.006
"""Above one step of the outputs of any of the models, whose last quantizer has 128 or 256 steps."""


def quantizers(program: Program) -> list[tuple[float, int, int, int]]:
    return [node.args[1:5] for node in program.graph.nodes if node.target is QUANTIZE]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("build", FORMS.values(), ids=list(FORMS))
def test_every_form_is_captured_with_its_scales_and_lowered(build: Callable[[], nn.Module], tmp_path) -> None:
    model = build()
    before = {name: value.clone() for name, value in tensors(model).items()}
    program = capture(model, IMAGES)
    well_formed(program)
    assert all(torch.equal(value, before[name]) for name, value in tensors(model).items())
    assert any("carries fake quantization" in note for note in program.notes)
    with torch.no_grad():
        wanted, found = model(IMAGES), program(IMAGES)
    last = program.graph.output_node().all_input_nodes[0]
    assert last.target is DEQUANTIZE
    assert float((wanted - found).abs().max()) <= 1.01 * last.args[1]
    state = program.module.state_dict()
    weights = [value for value in state.values() if value.dim() > 1]
    assert weights
    assert {value.dtype for value in weights} == {torch.int8}
    assert all((low, high) == (0, 255) for _, _, low, high in quantizers(program))
    program.save(tmp_path / "p.fxc")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "p.fxc")(IMAGES), found)
    plain = program.copy()
    drop_quantizers(plain)
    bound = integer_bound(plain, program, lower(program), [IMAGES])
    assert bound.quantizers >= 2
    assert bound.off_by_one < 0.01


def test_weights_that_are_stored_as_integers_are_parameters_still() -> None:
    """Two convolutions and a linear, with their biases."""
    assert cost(capture(eager(), IMAGES)).params == 8 * 3 * 9 + 8 * 8 * 9 + 5 * 8 + 8 + 8 + 5


class Tied(nn.Module):
    """One weight, rounded twice."""

    def __init__(self, *scales: float) -> None:
        super().__init__()
        self.weight, self.scales = nn.Parameter(torch.randn(8, 8)), scales

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = nn.functional.linear(
                x, torch.fake_quantize_per_tensor_affine(self.weight, scale, 0, -127, 127)
            )
        return x


@pytest.mark.parametrize(("scales", "copies"), [((0.02, 0.02), 1), ((0.02, 0.03), 2)])
def test_a_tied_weight_is_stored_once_where_its_integers_are_equal(
    scales: tuple[float, float], copies: int
) -> None:
    model, x = Tied(*scales).eval(), torch.randn(2, 8)
    program = capture(model, x)
    assert cost(program).params == copies * 64
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))


def test_scales_are_those_of_training() -> None:
    model = eager()
    trained = [
        (float(item.scale), int(item.zero_point))
        for item in model.modules()
        if isinstance(item, ao.FakeQuantizeBase) and item.scale.numel() == 1
    ]
    assert {found[:2] for found in quantizers(capture(model, IMAGES))} == set(trained)


def test_a_shorter_range_is_clamped() -> None:
    """0..127, the default of x86: QuantizeLinear saturates at 255."""
    program = capture(eager(), IMAGES)
    clamps = [node.args[1:] for node in program.graph.nodes if node.target is torch.ops.aten.clamp.default]
    assert clamps == [(0, 127)] * 4
    loud = 10 * IMAGES
    model = eager()
    with torch.no_grad():
        torch.testing.assert_close(program(loud), model(loud), rtol=0, atol=STEP)
    without = program.copy()
    for node in list(without.graph.nodes):
        if node.target is torch.ops.aten.clamp.default:
            node.replace_all_uses_with(node.args[0])
    without.module.recompile()
    with torch.no_grad():
        assert float((without(loud) - model(loud)).abs().max()) > 3 * STEP


def test_signed_activations_become_unsigned_with_the_same_values() -> None:
    program = capture(faked(), IMAGES)
    assert [(round(scale, 3), zero) for scale, zero, _, _ in quantizers(program)] == [
        (0.03, 123),
        (0.02, 131),
    ]


def test_the_batch_stays_dynamic_where_modules_quantize() -> None:
    program = capture(eager(), IMAGES)
    assert program.signature.dynamic == {"x": {0: "batch"}}


def test_what_is_switched_off_or_observes_only_is_left_out() -> None:
    model = eager()
    model.second.weight_fake_quant.disable_fake_quant()
    program = capture(model, IMAGES)
    assert program.module.state_dict()["second.weight"].dtype == torch.float32
    observed = nn.Sequential(nn.Linear(8, 4), ao.MinMaxObserver()).eval()
    assert not is_quantized(capture(observed, torch.randn(2, 8)))


class Learnable(nn.Module):
    """The operators of learnable fake quantization, whose zero points are floats."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.zero = nn.Conv2d(3, 4, 3), nn.Parameter(torch.tensor([-5.5]))
        self.scale, self.scales = nn.Parameter(torch.tensor([0.03])), nn.Parameter(torch.full((4,), 0.01))
        self.zeros = nn.Parameter(torch.full((4,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch._fake_quantize_learnable_per_tensor_affine(x, self.scale, self.zero, -128, 127, 1.0)
        w = torch._fake_quantize_learnable_per_channel_affine(
            self.conv.weight, self.scales, self.zeros, 0, -128, 127, 1.0
        )
        return nn.functional.conv2d(x, w, self.conv.bias)


def test_learnable_operators_are_settled_like_others() -> None:
    model = Learnable().eval()
    program = capture(model, IMAGES)
    assert quantizers(program) == [(pytest.approx(0.03), 122, 0, 255)]
    assert program.module.state_dict()["conv.weight_int8"].dtype == torch.int8
    with torch.no_grad():
        torch.testing.assert_close(program(50 * IMAGES), model(50 * IMAGES))
    assert "QuantizeLinear" in {node.op_type for node in lower(program).graph.node}


def test_fake_quantization_of_half_precision_is_refused() -> None:
    model = Tied(0.02, 0.02).half().eval()
    with pytest.raises(InputError, match=r"torch.float16 is fake-quantized[\s\S]*model.float"):
        capture(model, torch.randn(2, 8).half())


def test_a_quantizer_of_sixteen_bits_is_refused_with_its_range() -> None:
    quantizer = ao.FakeQuantize(
        observer=ao.MinMaxObserver, quant_min=-(2**15), quant_max=2**15 - 1, dtype=torch.qint32
    )
    model = nn.Sequential(nn.Linear(8, 4), quantizer)
    model(torch.randn(2, 8))
    with pytest.raises(InputError, match=r"1 has the integers -32768\.\.32767[\s\S]*0\.\.255"):
        capture(model.eval(), torch.randn(2, 8))


@pytest.mark.parametrize(
    ("scheme", "zero"), [(torch.per_tensor_affine, 120), (torch.per_tensor_symmetric, 0)]
)
def test_a_learnable_quantizer_has_the_scale_of_its_parameter(scheme: torch.qscheme, zero: int) -> None:
    quantizer = _LearnableFakeQuantize(
        ao.MovingAverageMinMaxObserver, scale=0.03, zero_point=120.5, dtype=torch.quint8, qscheme=scheme
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3), quantizer).eval()
    with pytest.raises(InputError, match="1 has no scale yet"):
        capture(model, IMAGES)
    quantizer.enable_param_learning()
    program = capture(model, IMAGES)
    assert quantizers(program) == [(pytest.approx(0.03), zero, 0, 255)]
    with torch.no_grad():
        torch.testing.assert_close(program(50 * IMAGES), model(50 * IMAGES))


def test_a_quantizer_that_saw_no_data_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 4), ao.FakeQuantize()).eval()
    with pytest.raises(InputError, match="1 has no scale yet"):
        capture(model, torch.randn(2, 8))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_packed_weights_are_refused_with_what_to_do() -> None:
    model = nn.Sequential(torch.ao.nn.quantized.Linear(8, 4)).eval()
    with pytest.raises(InputError, match=r"packed integer weights[\s\S]*convert_to_reference_fx"):
        capture(model, torch.randn(2, 8))


def test_a_model_that_pt2e_prepared_is_to_be_converted_first() -> None:
    foreign = type(
        "FakeQuantize", (ao.FakeQuantize,), {"__module__": "torchao.quantization.pt2e.fake_quantize"}
    )
    with pytest.raises(InputError, match=r"1 is a FakeQuantize of pt2e[\s\S]*convert_pt2e"):
        capture(nn.Sequential(nn.Linear(8, 4), foreign()).eval(), torch.randn(2, 8))


def test_a_program_that_was_exported_with_observers_is_to_be_passed_as_a_module() -> None:
    exported = torch.export.export(eager(), (IMAGES,))
    with pytest.raises(CaptureError, match=r"exported with observers[\s\S]*the prepared module itself"):
        capture(exported)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:torch.ao.quantization")
def test_packed_weights_with_scales_found_at_run_time_are_refused_too() -> None:
    model = ao.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)).eval())
    with pytest.raises(InputError, match=r"packed integer weights[\s\S]*int8-dynamic"):
        capture(model, torch.randn(2, 8))


def test_observers_that_have_seen_data_are_told_of() -> None:
    x = torch.randn(2, 8)
    model = nn.Sequential(nn.Linear(8, 4), ao.MinMaxObserver(), ao.PlaceholderObserver()).eval()
    assert not any("observers" in note for note in capture(model, x).notes)
    model(x)
    notes = [note for note in capture(model, x).notes if "observers" in note]
    assert len(notes) == 1
    assert "stay in float: 1; convert_to_reference_fx keeps them" in notes[0]
    assert not any("observers" in note for note in capture(eager(), IMAGES).notes)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_reference_model_inside_another_module_is_taken_in_as_alone() -> None:
    alone, wrapped = FORMS["reference"](), nn.Sequential(nn.Identity(), FORMS["reference"]()).eval()
    with torch.no_grad():
        assert torch.equal(capture(wrapped, IMAGES)(IMAGES), capture(alone, IMAGES)(IMAGES))
    assert quantizers(capture(wrapped, IMAGES)) == quantizers(capture(alone, IMAGES))


class Quantizing(nn.Module):
    """No layer, only a tensor of type quint8."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, 0.05, 100, dtype=torch.quint8).dequantize()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_graph_that_only_quantizes_is_taken_in() -> None:
    model = torch.fx.symbolic_trace(Quantizing()).eval()
    program = capture(nn.Sequential(nn.Identity(), model), IMAGES)
    assert quantizers(program) == [(0.05, 100, 0, 255)]
    with torch.no_grad():
        torch.testing.assert_close(program(IMAGES), model(IMAGES))


def test_exported_programs_are_taken_in_as_they_are(tmp_path) -> None:
    exported = torch.export.export(FORMS["decomposed"](), (IMAGES,))
    torch.export.save(exported, tmp_path / "qat.pt2")
    program = capture(tmp_path / "qat.pt2")
    assert is_quantized(program)
    assert program.module.state_dict()["head.weight_int8"].dtype == torch.int8
