"""Recipe files: read, refused line by line, written back, and run in the order they are written in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxcompress
from fxcompress.analysis.cost import cost
from fxcompress.api import Result, flow
from fxcompress.cli.main import main
from fxcompress.errors import CompressError, InputError
from fxcompress.graph.capture import capture
from fxcompress.numerics.saliency import KINDS, Saliency
from fxcompress.passes.fold_parameters import FoldParameters
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.remove_identities import RemoveIdentities
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import Quantize
from fxcompress.recipes.reading import load_recipe, named_recipes, read_recipe
from fxcompress.recipes.recipe import LOSSLESS, VOCABULARY, Recipe, recipe_of
from fxcompress.runtime.timing import Comparison

FULL = """
description = "all at once"

[[pass]]
name = "remove-identities"

[[pass]]
name = "prune"
budget = { macs = "50%", params = 100_000 }
scope = "kind"
protect = ["layer1.*", "Conv2d"]
saliency = { kind = "l1", reduce = "mean" }

[pass.ratios]
"layer2.*" = 0.25

[[pass]]
name = "fold-parameters"
max_growth = 2

[[pass]]
name = "quantize"
exclude = ["head*"]
"""


def test_a_file_spells_stages_and_their_fields_in_order() -> None:
    recipe = read_recipe(FULL)
    assert recipe.description == "all at once"
    assert recipe.steps == (
        RemoveIdentities(),
        Prune(
            budget=Budget(macs="50%", params=100_000.0),
            scope="kind",
            protect=("layer1.*", "Conv2d"),
            saliency=Saliency("l1", reduce="mean"),
            ratios={"layer2.*": 0.25},
        ),
        FoldParameters(max_growth=2.0),
        Quantize(exclude=("head*",)),
    )
    assert recipe.before == (RemoveIdentities(),)
    assert recipe.after == (FoldParameters(max_growth=2.0),)
    assert read_recipe(recipe.to_toml()) == recipe


@pytest.mark.parametrize("name", named_recipes())
def test_recipes_that_come_along_are_read_and_written_back(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert read_recipe(recipe.to_toml()) == recipe
    assert recipe.before == ()
    assert recipe.after == LOSSLESS


@given(
    st.builds(
        Prune,
        ratio=st.none() | st.floats(0.01, 0.99),
        budget=st.none() | st.builds(Budget, macs=st.floats(1, 1e12) | st.just("12.5%"), ms=st.just(3)),
        saliency=st.sampled_from(KINDS) | st.builds(Saliency, st.sampled_from(KINDS), seed=st.integers(0, 9)),
        protect=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=3).map(tuple),
        ratios=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.floats(0, 0.99)),
        compensate=st.none() | st.booleans(),
        min_width=st.integers(1, 64),
    ),
    st.none() | st.builds(Quantize, precision=st.sampled_from(["auto", "full"])),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_every_recipe_survives_the_round_trip(prune: Prune, quantize: Quantize | None, text: str) -> None:
    recipe = Recipe(recipe_of(prune, quantize).steps, text)
    assert read_recipe(recipe.to_toml()) == recipe


def test_the_recipe_in_the_readme_is_one() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", readme, flags=re.DOTALL)
    assert str(read_recipe(text)) == "prune -> fuse-batch-norm"
    for name in named_recipes():
        assert f"`{name}`" in readme


def test_what_a_file_cannot_spell_is_refused_when_written() -> None:
    for options in (Prune(protect=(nn.Conv2d,)), Prune(loss=lambda outputs, label: outputs.sum())):
        with pytest.raises(InputError, match="cannot spell"):
            Recipe((options,)).to_toml()


PRUNE = '[[pass]]\nname = "prune"\n'
SPARSIFY = '[[pass]]\nname = "sparsify"\n'
DEPTH = '[[pass]]\nname = "depth"\n'


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        (PRUNE + "ratoi = 0.5", 3, "unknown field 'ratoi'", "'ratio'"),
        (PRUNE + '\nratio = "half"', 4, "'ratio' is 'half'", "a number"),
        (PRUNE + "ratio = true", 3, "'ratio' is true", "a number"),
        (PRUNE + "ratio = 1.5", 3, "not a share of the MACs", "0.5"),
        (PRUNE + 'scope = "globe"', 3, "not one of global, group, kind", ""),
        (PRUNE + "min_width = 0.5", 3, "'min_width' is 0.5", "whole number"),
        (PRUNE + 'protect = "x"', 3, "'protect' is 'x'", "a list of texts"),
        (PRUNE + "saliency = 3", 3, "'saliency' is 3", "a text or a table of kind, reduce"),
        (PRUNE + 'saliency = { kind = "l3" }', 3, "'l3' is not one of l1, l2", ""),
        (PRUNE + 'budget = { mac = "50%" }', 3, "unknown field 'mac'", "'macs'"),
        (PRUNE + '[pass.budget]\nmacs = "50%"\nms = true', 5, "'ms' is true", "a number or a text"),
        (PRUNE + '[pass.budget]\nmacs = "half"', 4, "macs='half' is neither", "50%"),
        (PRUNE + '[pass.ratios]\n"a.*" = "x"', 4, "'a.*' is 'x'", "a number"),
        (PRUNE + 'loss = "mse"', 3, "'loss' is a function", "in Python"),
        ('[[pass]]\nname = "prun"', 2, "no stage 'prun'", "'prune'"),
        ("\n[[pass]]\nratio = 0.5", 2, "without a name", "quantize"),
        ("[[passes]]", 1, "unknown key 'passes'", "'pass'"),
        ("pass = 3", 1, "not a list of tables", "[[pass]]"),
        ("pass = [1]", 1, "1 is not a table", "[[pass]]"),
        ("description = 3", 1, "no text", ""),
        ('[[pass]]\nname = "fuse-batch-norm"\nlevel = 3', 3, "unknown field 'level'", "there are none"),
        ('[[pass]]\nname = "quantize"\nmode = "int3"', 3, "no mode 'int3'", "int8"),
        ('[[pass]]\nname = "quantize"\n\n' + PRUNE, 4, "the weights are integers", "prune before quantize"),
        (PRUNE + PRUNE, 3, "this is the second", "result.trainable"),
        (
            '[[pass]]\nname = "fuse-batch-norm"\n' + PRUNE,
            3,
            "the parameters of your model, which fuse-batch-norm replaces",
            "put prune before fuse-batch-norm",
        ),
        (SPARSIFY + PRUNE, 3, "prune after sparsify", "put prune before sparsify"),
        (PRUNE + DEPTH, 3, "depth after prune", "put depth before prune"),
        (SPARSIFY + SPARSIFY, 3, "this is the second", "result.trainable"),
        (
            PRUNE + '[[pass]]\nname = "remove-identities"\n' + SPARSIFY,
            5,
            "sparsify follows prune directly",
            "put remove-identities after sparsify",
        ),
        (SPARSIFY + 'pattern = "4:2"', 3, "pattern='4:2'", "2:4"),
        (DEPTH + "protect = 3", 3, "'protect' is 3", "a list of texts"),
    ],
)
def test_faults_name_the_line_and_what_to_do(text: str, place: int, message: str, hint: str) -> None:
    with pytest.raises(CompressError) as raised:
        read_recipe(text, "stages.toml")
    assert raised.value.message.startswith(f"stages.toml:{place}: ")
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no TOML.*line 1"):
        read_recipe("ratio = \n[[pass]]")
    (tmp_path / "image.toml").write_bytes(b"\xff\xfe")
    for wrong in (tmp_path / "missing.toml", tmp_path / "image.toml", tmp_path, "haalf"):
        with pytest.raises(InputError, match="half-int8"):
            load_recipe(wrong)


def test_recipes_built_in_python_are_checked_too() -> None:
    with pytest.raises(InputError, match="integers"):
        Recipe((Quantize(), FuseBatchNorm()))
    with pytest.raises(InputError, match="no stage of a recipe"):
        Recipe((object(),))  # type: ignore[arg-type]
    assert all(kind.__dataclass_params__.frozen for kind in VOCABULARY.values())


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    return model.eval(), torch.randn(2, 3, 6, 6)


def ran(result: Any) -> list[str]:
    return [entry.name for entry in result.report.passes if entry.name in {*VOCABULARY, "prune-channels"}]


def test_stages_run_in_the_written_order_and_no_others(net: Any, tmp_path: Path) -> None:
    stages = ["remove-identities", "prune", "fuse-batch-norm", "remove-identities"]
    (tmp_path / "own.toml").write_text("\n".join(f'[[pass]]\nname = "{name}"' for name in stages))
    result = fxcompress.optimize(*net, recipe=tmp_path / "own.toml")
    assert ran(result) == ["remove-identities", "prune-channels", "fuse-batch-norm", "remove-identities"]
    assert result.report.settings["recipe"] == " -> ".join(stages)
    assert any(proof.name == "masked-equivalence" for proof in result.report.proofs)


def test_keywords_are_a_recipe(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def invented(request: object, original: object, candidates: Any) -> Comparison:
        """The real times of a net this small are noise, which may hand out the original."""
        return Comparison(
            {item.name: (0.2 if item.name == "original" else 0.1,) * 30 for item in candidates}, {}, 1
        )

    monkeypatch.setattr(flow, "time_all", invented)
    by_name, by_keyword = fxcompress.optimize(*net, recipe="half"), fxcompress.optimize(*net, prune=0.5)
    assert ran(by_name) == ran(by_keyword)
    assert by_name.plan.kept == by_keyword.plan.kept


def test_a_saved_plan_is_applied_again(net: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    small: dict[str, Any] = {"objective": "size"}  # whatever the times of so small a net are
    first = fxcompress.optimize(*net, prune=0.4, **small)
    first.save("first")
    plan = PruningPlan.load("first/plan.json")
    assert fxcompress.optimize(*net, prune=plan, **small).plan.kept == first.plan.kept
    capture(*net).save(tmp_path / "net.fxc")
    command = ["optimize", "net.fxc", "-o", "out", "--objective", "size", "--plan", "first/plan.json"]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert PruningPlan.load("out/plan.json").kept == first.plan.kept
    assert CliRunner().invoke(main, [*command, "--prune", "0.5"]).exit_code == 2
    with pytest.raises(InputError, match="cannot spell a pruning plan"):
        recipe_of(plan, None).to_toml()
    Path("nothing.json").write_text(json.dumps(fxcompress.Plan().to_dict()))
    with pytest.raises(InputError, match=r"nothing\.json prunes nothing"):
        PruningPlan.load("nothing.json")


def test_the_command_line_takes_recipes(tmp_path: Path, net: Any, monkeypatch: Any) -> None:
    capture(*net).save(tmp_path / "net.fxc")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["optimize", "net.fxc", "-o", "out", "--recipe", "lossless", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["settings"]["recipe"].startswith("remove-identities -> ")
    Path("bad.toml").write_text('[[pass]]\nname = "prune"\nratio = 2\n')
    refused = CliRunner().invoke(main, ["optimize", "net.fxc", "-o", "out2", "--recipe", "bad.toml"])
    assert refused.exit_code == 1
    assert "bad.toml:3:" in refused.stderr


class Residual(nn.Module):
    """Three blocks around one stream; the second one hardly contributes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        with torch.no_grad():
            self.blocks[1].weight *= 1e-3
            self.blocks[1].bias *= 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x)


def test_blocks_channels_and_weights_go_in_one_call() -> None:
    """Depth, then channels, then 2:4 masks: each planned on what is left, proven, and told in the report."""
    prune = PRUNE + 'block = 4\n[pass.ratios]\n"stem.*" = 0.5\n'
    recipe = read_recipe(f'{DEPTH}ratio = 0.2\n{prune}{SPARSIFY}pattern = "2:4"')
    data = [torch.randn(8, 6) for _ in range(3)]
    result = fxcompress.optimize(Residual().eval(), data[0], recipe=recipe, calibration=data)
    names = [proof.name for proof in result.report.proofs]
    assert names[:2] == ["skipped-equivalence", "masked-equivalence"]
    assert "float-parity" in names
    tensors = dict(result.trainable.module.named_parameters())
    assert "blocks.1.weight" not in tensors
    assert tensors["blocks.0.weight"].shape[0] == 8
    weight = tensors["blocks.2.weight"].detach()
    assert int((weight.reshape(weight.shape[0], -1, 4) == 0).sum(-1).min()) >= 2
    assert any("residual blocks are left out" in note for note in result.report.notes)
    assert any("dense kernels run no faster" in note for note in result.report.notes)


def test_depth_needs_data_that_can_be_read_again() -> None:
    for data in (None, iter([torch.randn(8, 6)])):
        with pytest.raises(InputError, match="depth needs calibration data"):
            fxcompress.optimize(
                Residual().eval(), torch.randn(8, 6), recipe=read_recipe(DEPTH), calibration=data
            )


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_an_empty_file_is_no_recipe(text: str) -> None:
    """It compressed nothing, without a word."""
    with pytest.raises(InputError, match="x.toml is empty"):
        read_recipe(text, "x.toml")
    assert read_recipe(Recipe(()).to_toml()) == Recipe(())


@pytest.mark.parametrize("name", ['["prune"]', "{ a = 1 }", "3"])
def test_a_name_that_is_no_text_is_no_stage(name: str) -> None:
    with pytest.raises(InputError, match="there is no stage"):
        read_recipe(f"[[pass]]\nname = {name}\n")


class Block(nn.Module):
    """Two convolutions with batch norm beside a stream of 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def residual_cnn() -> tuple[nn.Module, list[torch.Tensor]]:
    """Three residual blocks whose norms have seen data, and calibration batches."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(), Block(), Block()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    data = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    with torch.no_grad():
        model.train()(torch.cat(data))
    return model.eval(), data


def share_left(result: Result) -> float:
    model, data = residual_cnn()
    return cost(result.trainable).macs / cost(capture(model, data[0])).macs


def stored(result: Result) -> list[torch.Tensor]:
    """The weights of the ONNX model that is handed out."""
    tensors = [torch.tensor(onnx.numpy_helper.to_array(item)) for item in result.onnx.graph.initializer]
    return [tensor for tensor in tensors if tensor.dim() > 1]


def keeps_the_outputs(result: Result) -> None:
    model, data = residual_cnn()
    (found,) = result.session().run(None, {result.session().get_inputs()[0].name: data[0].numpy()})
    torch.testing.assert_close(torch.tensor(found), model(data[0]), rtol=1e-4, atol=1e-5)
    assert "BatchNormalization" not in {node.op_type for node in result.onnx.graph.node}
    assert share_left(result) == 1


def halves(result: Result) -> None:
    assert 0.4 <= share_left(result) <= 0.5
    assert any(proof.name == "masked-equivalence" for proof in result.report.proofs)


def computes_in_int8(result: Result) -> None:
    assert set(result.plan.precision.values()) == {"int8"}
    assert [tensor.dtype for tensor in stored(result)] == [torch.int8] * 8


def halves_in_int8(result: Result) -> None:
    halves(result)
    computes_in_int8(result)


def leaves_a_block_out(result: Result) -> None:
    """The least number of blocks worth a quarter is one of three, worth 31%."""
    assert 0.65 <= share_left(result) <= 0.75
    assert sum(node.op_type == "Add" for node in result.onnx.graph.node) == 2


def zeroes_two_of_four(result: Result) -> None:
    """In what is handed out, where the inputs are a multiple of four: all but the stem."""
    weights = [tensor for tensor in stored(result) if tensor.shape[1] % 4 == 0]
    assert len(weights) == 7
    for weight in weights:
        groups = weight.movedim(1, -1).reshape(-1, 4)
        assert bool(((groups != 0).sum(-1) == 2).all())


PROMISES: dict[str, Callable[[Result], None]] = {
    "lossless": keeps_the_outputs,
    "half": halves,
    "int8": computes_in_int8,
    "half-int8": halves_in_int8,
    "shallow": leaves_a_block_out,
    "two-of-four": zeroes_two_of_four,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", named_recipes())
def test_recipes_that_come_along_do_what_they_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small residual network, whatever the times of one so small are."""
    seconds = {"original": 0.3, "int8": 0.1}

    def invented(request: object, original: object, candidates: Any) -> Comparison:
        return Comparison({item.name: (seconds.get(item.name, 0.2),) * 30 for item in candidates}, {}, 1)

    monkeypatch.setattr(flow, "time_all", invented)
    model, data = residual_cnn()
    PROMISES[name](fxcompress.optimize(model, data[0], recipe=name, calibration=data))
