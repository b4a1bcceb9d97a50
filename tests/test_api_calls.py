"""Single calls of `optimize`: the lossless one, what is handed out and why, and everything it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.analysis.groups import analyse
from fxcompress.analysis.prunability import prunability
from fxcompress.api import compress, findings, flow, proofs
from fxcompress.api.compress import SAMPLES
from fxcompress.api.request import Request, program_of, pruning_options, stages
from fxcompress.errors import BudgetError, CompressError, InputError, NotSupported, ProofError
from fxcompress.graph.edit import set_tensor
from fxcompress.graph.program import Program
from fxcompress.passes.contract import Outcome
from fxcompress.passes.fuse_batch_norm import FuseBatchNorm
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.recipes.recipe import recipe_of
from fxcompress.runtime.session import SessionError
from fxcompress.runtime.timing import Comparison
from fxcompress.targets.catalog import resolve
from tests.architectures.programs import captured
from tests.architectures.randomise import randomise
from tests.architectures.residual_net import Net, images


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomise(Net(), 0, (images(8),))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()


def test_alone_it_is_lossless_and_infers_the_inputs() -> None:
    model = small()
    result = fxcompress.optimize(model)
    x = torch.randn(7, 8)
    (found,) = result.session().run(None, {result.program.signature.inputs[0]: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert result.plan.kept == {}
    assert result.plan.precision == {}
    assert [proof.name for proof in result.report.proofs] == ["float-parity"]
    assert result.report.ratio("macs") == 1.0
    assert result.report.operators is None


def test_the_original_is_handed_out_when_all_else_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    def invented(request: object, original: object, candidates: Any) -> Comparison:
        return Comparison(
            {item.name: (0.1 if item.name == "original" else 0.2,) * 30 for item in candidates}, {}, 1
        )

    monkeypatch.setattr(flow, "time_all", invented)
    result = fxcompress.optimize(small())
    assert result.report.ratio("bytes") == 1.0
    assert any("slower than the original" in note for note in result.report.notes)
    assert any("batch_norm" in str(node.target) for node in result.program.graph.nodes)
    assert [proof.name for proof in result.report.proofs] == ["float-parity", "float-parity"]
    assert "as captured" in result.report.proofs[-1].detail


def test_int8_that_was_asked_for_and_is_not_handed_out_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def invented(request: object, original: object, candidates: Any) -> Comparison:
        return Comparison(
            {item.name: (0.3 if item.name == "int8" else 0.2,) * 30 for item in candidates}, {}, 1
        )

    monkeypatch.setattr(flow, "time_all", invented)
    report = fxcompress.optimize(small(), quantize="int8", calibration=[torch.randn(16, 8)]).report
    assert "int8 was asked for, and the float model is handed out; int8: 1.50 times the latency of float" in (
        report.notes
    )


def test_a_memory_probe_that_fails_costs_only_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise SessionError("the memory probe did not finish in 120 s")

    monkeypatch.setattr(findings, "peak_memory", failing)
    report = fxcompress.optimize(small()).report
    assert report.before.peak_memory is None
    assert report.after.peak_memory is None
    assert any("memory" in note and "did not finish" in note for note in report.notes)


class Noisy(nn.Module):
    """Adds noise to what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x + torch.randn_like(x))


@pytest.mark.parametrize("options", [{}, {"prune": 0.5}])
def test_a_model_that_draws_random_numbers_is_refused(options: dict[str, Any]) -> None:
    """Once a parity that failed at random, and "a fault in fxcompress" when pruning."""
    with pytest.raises(NotSupported, match="draws random numbers") as caught:
        fxcompress.optimize(Noisy().eval(), torch.randn(2, 8), **options)
    assert caught.value.node is not None
    assert "randn_like" in caught.value.node
    assert caught.value.source is not None
    assert "torch.randn_like(x)" in caught.value.source


@pytest.mark.parametrize(
    ("scale", "detail"), [(1.0, "outputs differ by"), (0.0, "no other input that was tried moved")]
)
def test_the_masked_proof_says_whether_outputs_moved(scale: float, detail: str) -> None:
    table = nn.Embedding(9, 32)
    table.weight.data.mul_(scale)
    model = nn.Sequential(table, nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    report = fxcompress.optimize(model, torch.tensor([[3, 8, 1, 5]]), prune=0.4).report
    assert detail in report.proofs[0].detail


def test_losing_more_than_allowed_returns_nothing() -> None:
    metrics = iter([0.9, 0.5])
    with pytest.raises(BudgetError, match=r"may lose 0\.1; after: float 0\.5"):
        fxcompress.optimize(small(), evaluate=lambda f: next(metrics), max_drop=0.1)


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return fxcompress.capture(model, images(2))


def test_takes_what_is_already_captured(model: nn.Module, program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "net.fxc")
    exported = torch.export.export(model, (images(2),))
    torch.export.save(exported, tmp_path / "net.pt2")
    x = images(2, 3)
    for given in (program, tmp_path / "net.fxc", str(tmp_path / "net.pt2"), exported):
        taken = program_of(given, None, None)
        assert taken is not given
        assert torch.equal(taken(x), model(x))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"prune": 1.5}, InputError, r"prune=1\.5 is not a share"),
        ({"prune": 0}, InputError, "is not a share"),
        ({"prune": "half"}, InputError, "neither a share"),
        ({"prune": True}, InputError, "neither a share"),
        ({"quantize": "int8"}, InputError, "needs calibration"),
        ({"quantize": 8, "calibration": []}, InputError, "no mode"),
        ({"target": "abacus"}, NotSupported, "abacus"),
        ({"objective": "beauty"}, InputError, "latency, size"),
        ({"threads": 0}, InputError, "threads=0"),
        ({"batch": 1.5}, InputError, r"batch=1\.5"),
        ({"opset": 3}, InputError, "opset 3"),
        ({"evaluate": 0.9}, InputError, "not a function"),
        ({"max_drop": -1, "evaluate": len}, InputError, "max_drop=-1"),
        ({"max_drop": "1%", "evaluate": len}, InputError, "max_drop='1%'"),
        ({"max_drop": torch.tensor(True), "evaluate": len}, InputError, "max_drop=tensor"),
        ({"max_drop": np.float32("nan"), "evaluate": len}, InputError, "max_drop=.*nan"),
        ({"max_drop": np.zeros(2), "evaluate": len}, InputError, "max_drop=array"),
        ({"recover": "distill"}, NotSupported, "recover"),
        ({"recipe": "recipe.json"}, InputError, r"no recipe 'recipe\.json'[\s\S]*half-int8"),
        ({"recipe": "half", "prune": 0.5}, InputError, "pass either"),
        ({"recipe": 3}, InputError, "neither a Recipe nor a path"),
        ({"recipe": "int8"}, InputError, "needs calibration"),
    ],
)
def test_refuses_before_any_work(options: dict[str, Any], kind: type[CompressError], message: str) -> None:
    told: list[str] = []
    with pytest.raises(kind, match=message) as raised:
        fxcompress.optimize(nn.Linear(2, 2), progress=told.append, **options)
    assert raised.value.hint is not None or "one of" in str(raised.value)
    assert told == []


@pytest.mark.parametrize(
    "given",
    [
        np.float32(0.25),
        np.array(0.25),
        torch.tensor(0.25, requires_grad=True),
        Fraction(1, 4),
        Decimal("0.25"),
    ],
)
def test_a_bound_is_any_number(given: Any) -> None:
    """Once those of numpy and torch were refused."""
    held = Request(recipe=recipe_of(None, None), target=resolve("onnxruntime"), max_drop=given).max_drop
    assert type(held) is float
    assert held == 0.25
    pruning = pruning_options(given)
    assert isinstance(pruning, fxcompress.Prune)
    assert pruning.ratio == 0.25


def test_refuses_programs_and_models_in_training_mode(program: Program) -> None:
    with pytest.raises(InputError, match="training mode"):
        fxcompress.optimize(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train(), torch.randn(2, 2))
    with pytest.raises(InputError, match="training mode"):
        fxcompress.optimize(program.copy().train())
    with pytest.raises(InputError, match="has its own example"):
        fxcompress.optimize(program, images(2))


def spoiled() -> Iterator[Tensor]:
    yield images(4)
    yield images(4) * float("nan")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "no batch"),
        (iter([]), "empty"),
        ([images(4), images(4) * float("nan")], "NaN"),
        (spoiled(), "NaN"),
        (images(4), "cannot be a Tensor"),
        ([torch.randn(4, 3, 5)], "shape"),
    ],
)
def test_refuses_calibration_data_it_cannot_use(program: Program, calibration: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fxcompress.optimize(program, quantize="int8", calibration=calibration)


def test_refuses_a_budget_out_of_reach_and_a_model_without_groups(program: Program) -> None:
    with pytest.raises(BudgetError, match="while running plan-pruning"):
        fxcompress.optimize(program, prune=0.999)
    with pytest.raises(InputError, match="no prunable group"):
        fxcompress.optimize(nn.Linear(4, 4).eval(), torch.randn(2, 4), prune=0.5)


def test_data_that_is_read_once_is_sampled_and_still_whole(program: Program) -> None:
    given = [images(6, seed) for seed in range(5)]
    samples, whole = compress._samples(program, iter(given))
    assert sum(len(batch[0]) for batch in samples) == SAMPLES
    assert torch.equal(torch.cat([batch[0] for batch in samples]), torch.cat(given)[:SAMPLES])
    assert whole is not None
    assert all(torch.equal(a, b) for a, b in zip(whole.everything, given, strict=True))
    assert [len(batch) for batch in whole.again] == [6, 6, 6], "what can be read again is what was held"


class Careless(PruneChannels):
    """Removes the channels, and loses a thousandth of one weight on the way."""

    def run(self, program: Program) -> Outcome:
        outcome = super().run(program)
        weight = outcome.program.module.get_parameter("body.0.weight")
        set_tensor(outcome.program, "body.0.weight", weight * 1.001)
        return outcome


def test_a_wrong_removal_is_not_returned(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "PruneChannels", Careless)
    with pytest.raises(ProofError, match="while running prove-pruning"):
        fxcompress.optimize(program, prune=0.5)


class WrongFold:
    """Claims to fold, and scales a weight."""

    name = "wrong-fold"

    def run(self, program: Program) -> Outcome:
        copy = program.copy()
        set_tensor(copy, "head.weight", copy.module.get_parameter("head.weight") * 1.001)
        return Outcome(copy, ("head.weight",))


def test_a_wrong_fold_is_not_returned(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FuseBatchNorm, "run", WrongFold.run)
    with pytest.raises(ProofError, match="while running prove-float"):
        fxcompress.optimize(program)


def test_proofs_use_few_samples(program: Program) -> None:
    batch = [images(9)]
    assert len(compress.leading(program, batch, proofs.PROOF_SAMPLES)[0]) == proofs.PROOF_SAMPLES


def test_the_report_is_of_what_pruning_works_on() -> None:
    """A packed projection is split before pruning: its parts have names in the user's tensor."""
    program = captured("vit_packed")
    recipe = stages(fxcompress.Prune(0.3, block=1), None, None)
    asked = flow.Request(recipe=recipe, target=resolve("onnxruntime"))
    part = "blocks.0.attention.qkv.weight[0][128:192]:1"
    made = compress.compress(asked, program, Journal())
    assert made.pruning is not None
    assert part in made.pruning.channels
    lossless = compress.compress(replace(asked, recipe=stages(None, None, None)), program, Journal())
    assert lossless.trainable is program
    names = [group.name for group in made.analysis.groups]
    assert [group.name for group in lossless.analysis.groups] == names
    assert prunability(lossless.analysis) == prunability(made.analysis)
    packed, loose = (prunability(found).obstacles for found in (analyse(program), made.analysis))
    assert any(item.axis == "blocks.0.attention.qkv.weight[0]:0" for item in packed)
    assert not any("qkv" in item.axis for item in loose)
