"""`optimize` as its user meets it: the whole path once, and all that it hands out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import InputError
from tests.architectures.randomise import randomise
from tests.architectures.residual_net import Net, images


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomise(Net(), 0, (images(8),))


@pytest.fixture(scope="module")
def before(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(model: nn.Module, before: dict[str, Tensor], steps: list[str]) -> fxcompress.Result:
    """One whole run: pruned, int8, with a metric (agreement with the model), calibration read once."""
    calibration = ((images(8, seed), torch.zeros(8)) for seed in range(3))

    def agreement(f: Any) -> float:
        x = images(40, 9)
        return float((f(x).argmax(1) == model(x).argmax(1)).double().mean())

    return fxcompress.optimize(
        model,
        images(2),
        prune=0.5,
        quantize="int8",
        calibration=calibration,
        evaluate=agreement,
        input_names=["image"],
        output_names=["scores"],
        progress=steps.append,
    )


def test_the_report_holds_what_was_promised(result: fxcompress.Result) -> None:
    report = json.loads(json.dumps(result.report.to_dict(), allow_nan=False))
    for side in ("before", "after"):
        assert all(
            report[side][key] is not None for key in ("params", "macs", "bytes", "latency_ms", "metric")
        )
        assert all(
            report[side][key] > 0
            for key in ("params", "macs", "bytes", "latency_ms", "throughput", "peak_memory")
        )
    assert report["before"]["metric"] == 1.0
    assert report["output_error"]["max"] > report["output_error"]["mean"] > 0
    assert {entry["axis"]: entry["members"] for entry in report["frozen"]} == {
        "head.weight[0]": ["head.weight[0]", "head.bias[0]"],
        "stem.0.weight[1]": ["stem.0.weight[1]"],
    }
    assert report["settings"]["prune"]["ratio"] == 0.5
    assert report["seconds"] > sum(entry["seconds"] for entry in report["passes"]) * 0.9


def test_the_budget_is_met_from_below(result: fxcompress.Result) -> None:
    assert 0.49 <= result.report.ratio("macs") <= 0.5  # type: ignore[operator]
    assert result.report.ratio("params") < 0.6  # type: ignore[operator]


def test_every_step_is_logged_in_order(result: fxcompress.Result, steps: list[str]) -> None:
    assert [entry.name for entry in result.report.passes] == steps
    expected = [
        "capture", "analyse", "plan-pruning", "prune-channels", "prove-pruning", "remove-identities",
        "fold-parameters", "fuse-batch-norm", "calibrate", "plan-quantization", "quantize-tensors",
        "measure-kernels", "cut-precision", "lower-original", "lower-float", "lower-int8", "prove-float",
    ]  # fmt: skip
    assert steps[0] == expected[0]
    told = iter(steps)  # rewrites before the analysis and compensation after pruning are between them
    assert all(name in told for name in expected)
    by_name = {entry.name: entry for entry in result.report.passes}
    assert by_name["remove-identities"].changed == ("dropout is mean",)
    assert len(by_name["fuse-batch-norm"].changed) == 2
    assert any(line.startswith("quantize-tensors") for line in result.program.history)


def test_everything_was_proven(result: fxcompress.Result) -> None:
    assert [proof.name for proof in result.report.proofs] == [
        "masked-equivalence",
        "float-parity",
        "integer-bound",
    ]
    assert all(proof.error <= proof.bound for proof in result.report.proofs)


def test_the_candidates_were_timed_and_one_was_chosen(result: fxcompress.Result) -> None:
    candidates = {entry.name: entry for entry in result.report.candidates}
    assert list(candidates)[:3] == ["original", "float", "int8"]
    assert all(name.startswith("int8 cut") for name in list(candidates)[3:])
    (chosen,) = (entry.name for entry in candidates.values() if entry.chosen)
    assert chosen != "original"
    assert all(entry.latency_ms and entry.reason for entry in candidates.values())
    assert all(candidates[name].error > 0 for name in ("float", "int8"))  # type: ignore[operator]
    assert candidates["original"].error is None


def test_the_model_is_left_as_it_was(
    result: fxcompress.Result, model: nn.Module, before: dict[str, Tensor]
) -> None:
    assert not any(module.training for module in model.modules())
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_plan_is_in_the_users_coordinates(result: fxcompress.Result, before: dict[str, Tensor]) -> None:
    tensors = dict(result.trainable.module.named_parameters())
    assert result.plan.kept
    for name, dims in result.plan.kept.items():
        expected = before[name]
        for dim, stay in dims.items():
            expected = expected.index_select(dim, torch.tensor(stay))
        if name in tensors:
            assert torch.equal(tensors[name], expected)
    assert set(result.plan.precision.values()) <= {"int8", "float"}


def test_the_trainable_program_trains(result: fxcompress.Result) -> None:
    program = result.trainable.copy(share=False).train()
    loss = program(images(4)).square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in program.module.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)


def test_the_session_takes_any_batch_under_the_names_asked_for(result: fxcompress.Result) -> None:
    session = result.session()
    assert [value.name for value in session.get_inputs()] == ["image"]
    for batch in (1, 5):
        x = images(batch, 5)
        (scores,) = session.run(["scores"], {"image": x.numpy()})
        expected = result.program(x).detach().numpy()
        assert scores.shape == expected.shape
        scale = np.abs(expected).max()
        assert np.abs(scores - expected).max() < 0.02 * scale


def test_saves_exactly_four_files_that_load_again(result: fxcompress.Result, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    for _ in range(2):  # the second time over the first
        result.save(folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "model.onnx",
            "plan.json",
            "program.fxc",
            "report.json",
        ]
    assert onnx.load(str(folder / "model.onnx")) == result.onnx
    assert (folder / "model.onnx").stat().st_size == result.report.after.bytes
    assert str(fxcompress.load(folder / "program.fxc")) == str(result.program)
    plan = json.loads((folder / "plan.json").read_text())
    assert {
        name: {int(dim): tuple(stay) for dim, stay in dims.items()} for name, dims in plan["kept"].items()
    } == (result.plan.kept)
    assert json.loads((folder / "report.json").read_text())["after"]["macs"] == result.report.after.macs


def test_a_folder_that_cannot_be_written_is_refused_and_left_clean(
    result: fxcompress.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot write"):
        result.save(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot write"):
        result.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fxcompress.api.result.save_model", full)
    with pytest.raises(InputError, match="No space left"):
        result.save(tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
