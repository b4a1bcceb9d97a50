"""Modes of quantization on whole architectures, on the command line and in recipes."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxcompress
from fxcompress.api.carried import carried_plan
from fxcompress.cli.main import main
from fxcompress.errors import InputError, NotSupported
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.passes.change_floats import ChangeFloats, overflow
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.passes.quantize_weights import QuantizeWeights
from fxcompress.plan.quantization_plan import MODES
from fxcompress.plan.unbounded import UNBOUNDED
from fxcompress.proof.halves import half_bound
from fxcompress.proof.parity import parity_at_sizes
from fxcompress.proof.products import product_bound
from fxcompress.recipes.reading import load_recipe
from fxcompress.targets.onnxruntime import onnxruntime
from tests.architectures.programs import captured
from tests.graph.prepared import IMAGES, eager, residual

TRANSFORMERS = ("hf_bert_eager", "hf_gpt2", "hf_llama", "hf_vit", "vit_packed", "mixer", "convnext")
CONVOLUTIONAL = ("mobilenet_hardswish", "resnet_basic")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRANSFORMERS, *CONVOLUTIONAL])
def test_products_of_whole_architectures_are_proven(name: str) -> None:
    program = captured(name)
    for stage in (
        QuantizeDynamically(smallest=0),
        QuantizeWeights(4, 16, smallest=0),
        QuantizeWeights(8, 16, "int8", smallest=0),
    ):
        outcome = stage.run(program)
        assert outcome.changed
        found = product_bound(program, outcome.program, lower(outcome.program), program.flat_example())
        assert found.closest < 0.5
        assert found.error < found.bound


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRANSFORMERS, *CONVOLUTIONAL, "unet"])
def test_shorter_floats_of_whole_architectures_are_proven(name: str) -> None:
    program = captured(name)
    stored = ChangeFloats("float16", smallest=0).run(program).program
    parity_at_sizes(stored, lower(stored))
    computed = ChangeFloats("float16", "all").run(program).program
    inputs = program.flat_example()
    assert overflow(program, computed, [inputs]) is None
    half_bound(program, computed, lower(computed), inputs, torch.float16)


@pytest.mark.parametrize("mode", MODES)
def test_a_recipe_spells_every_mode(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "stages.toml"
    path.write_text(f'[[pass]]\nname = "quantize"\nmode = "{mode}"\nblock_size = 64\n')
    recipe = load_recipe(path)
    assert recipe.quantize is not None
    assert (recipe.quantize.mode, recipe.quantize.block_size) == (mode, 64)
    path.write_text(recipe.to_toml())
    assert load_recipe(path) == recipe


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int8-dynamic", "int4-weights", "float16"])
def test_the_command_line_takes_modes_without_calibration(mode: str, tmp_path: Path) -> None:
    captured("vit_packed").save(tmp_path / "net.fxc")
    arguments = ["optimize", str(tmp_path / "net.fxc"), "-o", str(tmp_path / "out"), "--quantize", mode]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["quantize"]["mode"] == mode
    assert any(item["name"].startswith(mode) for item in report["candidates"])


def test_what_a_model_came_with_is_told_operator_by_operator() -> None:
    target = onnxruntime()
    plan = carried_plan(capture(residual(), IMAGES), target)
    assert plan is not None
    assert plan.precision == {"conv2d": "int8", "conv2d_1": "int8", "linear": "int8"}
    plan = carried_plan(capture(eager(), IMAGES), target)
    assert plan is not None
    assert plan.precision == {"conv2d": "int8", "conv2d_1": "int8", "linear": "float"}
    assert plan.declined[0].reason == "the model does not quantize its input"
    assert carried_plan(captured("resnet_basic"), target) is None


def test_what_is_excluded_is_not_stored_in_half() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    asked = fxcompress.Quantize("float16", exclude=("2",))
    result = fxcompress.optimize(model, torch.randn(2, 64), quantize=asked, objective="size")
    kinds = {item.name: item.data_type for item in result.onnx.graph.initializer if len(item.dims) == 2}
    assert sorted(kinds.values()) == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16]
    with pytest.raises(NotSupported, match="nothing can be excluded"):
        fxcompress.optimize(model, torch.randn(2, 64), quantize=replace(asked, precision="full"))


class Prototypes(nn.Module):
    """Scores against learned rows, and the rows themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rows = nn.Linear(64, 64), nn.Parameter(torch.randn(4, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x) @ self.rows.t(), self.rows


@pytest.mark.parametrize("mode", ["int8", "int8-dynamic", "int8-weights", "float16"])
def test_an_output_may_be_a_parameter(mode: str) -> None:
    """Once the proofs of every mode failed with what torch says of `numpy()`."""
    x = torch.randn(4, 64)
    asked = fxcompress.Quantize(mode, precision="full")
    result = fxcompress.optimize(Prototypes().eval(), x, quantize=asked, calibration=[x])
    assert next(item.name for item in result.report.candidates if item.chosen).startswith(mode)


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "portable"])
def test_bfloat16_is_stored_whatever_the_target(target: str) -> None:
    """Every file is loaded and proven in onnxruntime, which computes nothing in it."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    result = fxcompress.optimize(model, torch.randn(2, 64), quantize="bfloat16", target=target)
    assert "bfloat16 weights" in [item.name for item in result.report.candidates]


@pytest.mark.parametrize(
    "mode",
    ["int8", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("int8-dynamic", "int8-weights"))],
)
def test_masked_scores_of_minus_infinity_are_no_difference(mode: str) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(16, 16), nn.Linear(16, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.body(x))).masked_fill(x[:, :6] > 1.0, float("-inf"))

    torch.manual_seed(0)
    x = [torch.randn(8, 16) for _ in range(3)]
    asked = fxcompress.Quantize(mode, precision="full")
    result = fxcompress.optimize(Masked().eval(), x[0], quantize=asked, calibration=x)
    assert all(proof.error <= proof.bound for proof in result.report.proofs)


class Additive(nn.Module):
    """Attention as it is written by hand: a mask of minus infinity is made and added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        hidden = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))[:, None, :]
        return self.out((q @ k.transpose(1, 2) + hidden).softmax(-1) @ v)


@pytest.mark.parametrize("precision", ["full", pytest.param("auto", marks=pytest.mark.slow)])
def test_masks_that_are_added_stay_in_float(precision: str) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False, True, True]] * 4)
    data = [(torch.randn(4, 5, 16), mask) for _ in range(3)]
    asked = fxcompress.Quantize(precision=precision)
    result = fxcompress.optimize(Additive().eval(), data[0], quantize=asked, calibration=data)
    if precision == "full":
        plan = result.plan.quantization
        assert plan is not None
        assert {plan.precision["linear"], plan.precision["linear_1"]} == {"int8"}
        assert UNBOUNDED in {item.reason for item in plan.declined}
    assert result.report.output_error is not None
    assert result.report.output_error.relative < 0.1


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    """A misspelt name would quantize what was to be spared."""
    model = nn.Sequential(OrderedDict(body=nn.Linear(8, 16), head=nn.Linear(16, 4))).eval()
    x = [torch.randn(8, 8)]
    asked = fxcompress.Quantize(exclude=("body*", "hed*"))
    with pytest.raises(InputError, match=r"'hed\*' of what stays in float matches no operator") as caught:
        fxcompress.optimize(model, x[0], quantize=asked, calibration=x)
    assert caught.value.hint is not None
    assert "head" in caught.value.hint


def test_weights_rounded_by_few_samples_are_no_worse_on_others() -> None:
    """With 32 rows of 64 inputs the paper's damping moved errors to where no sample had looked."""
    torch.manual_seed(0)
    model, data, unseen = (
        nn.Linear(64, 256).eval(),
        [torch.randn(4, 64) for _ in range(8)],
        torch.randn(512, 64),
    )
    program = capture(model, data[0])
    errors = []
    for calibration in (None, data):
        made = QuantizeWeights(bits=4, calibration=calibration).run(program).program
        with torch.no_grad():
            errors.append(float((made(unseen) - model(unseen)).norm() / model(unseen).norm()))
    assert errors[1] < 1.05 * errors[0]
