"""The whole path on every architecture: each once here; more seeds, ONNX and INT8 in the slow tier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

import fxcompress
from fxcompress.analysis.calibration import calibrate
from fxcompress.analysis.groups import analyse
from fxcompress.graph.archive import load
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import Quantize, plan_quantization, tensors_to_observe
from fxcompress.proof.integer import integer_bound
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from fxcompress.recipes import LOSSLESS
from fxcompress.runtime.session import open_session, run
from fxcompress.targets.catalog import resolve
from tests.architectures.catalog import NAMES, VARIANTS, by_name
from tests.architectures.golden import below_the_table
from tests.architectures.programs import (
    EXACT,
    at_sizes,
    call,
    captured,
    exported_again,
    in_double,
    largest_difference,
    random_plan,
    zeroed,
)

LARGE = ("hf_gpt2", "hf_bert", "hf_vit")
"""Proven whole in the slow tier; their parts are in the default one."""

each_architecture = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in VARIANTS else []) for name in NAMES]
)


@each_architecture
def test_a_captured_program_computes_what_the_model_does_at_other_sizes(name: str) -> None:
    """Exactly: the operators are the same ones."""
    architecture, program = by_name(name), captured(name)
    well_formed(program)
    assert all(0 in axes for axes in program.signature.dynamic.values()), "the batch is static"
    inputs = architecture.example(3, seed=7, length=17)
    assert largest_difference(call(program, inputs), call(architecture.model(), inputs)) == 0.0


@each_architecture
def test_an_archive_gives_back_the_same_program(name: str, tmp_path: Path) -> None:
    program = captured(name)
    program.save(tmp_path / "program.fxc")
    loaded = load(tmp_path / "program.fxc")
    well_formed(loaded)
    assert str(loaded) == str(program)
    inputs = by_name(name).example(3, seed=7, length=17)
    assert largest_difference(call(loaded, inputs), call(program, inputs)) == 0.0


@each_architecture
def test_analysis_understands_every_operator(name: str) -> None:
    analysis = analyse(captured(name))
    assert len(analysis.groups) > 3
    assert not [item for item in analysis.frozen if "rule" in item.reason]
    assert not below_the_table(name, captured(name)), "more is frozen than was"


def pruned_and_proven(name: str, seed: int) -> Program:
    """Prune by a random plan and prove the removal."""
    program = captured(name, seed)
    analysis = analyse(program)
    plan = random_plan(analysis, seed)
    pruned = PruneChannels(plan).run(program).program
    well_formed(pruned)
    proof = masked_equivalence(program, pruned, plan, seed=seed)
    assert proof.response > 1e-3, "the model hardly depends on its input: the proof proves little"
    assert analyse(pruned).price.at({}) == plan.after
    return pruned


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in {*VARIANTS, *LARGE} else []) for name in NAMES],
)
def test_pruned_fused_and_lowered(name: str) -> None:
    deployed = Journal().apply_all(LOSSLESS, pruned_and_proven(name, 0))
    float_parity(deployed, lower(deployed), at_sizes(deployed, name, 5, 17))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_pruned_fused_lowered_and_quantized_with_other_seeds(name: str, seed: int) -> None:
    architecture, pruned = by_name(name), pruned_and_proven(name, seed)
    if seed == 1:
        others = architecture.example(3, seed=7, length=17)
        exported_again(pruned, architecture.example(), others, architecture.dynamic_shapes)
    deployed = Journal().apply_all(LOSSLESS, pruned)
    model = lower(deployed)
    for batch, length in ((1, 9), (5, 17)):
        float_parity(deployed, model, at_sizes(deployed, name, batch, length))
    if architecture.int8:
        quantized = quantized_in_full(deployed, name)
        integer_bound(deployed, quantized, lower(quantized), at_sizes(deployed, name, 3, 12))


def quantized_in_full(program: Program, name: str) -> Program:
    """Every operator that has an integer kernel in INT8, calibrated on three batches."""
    target, options = resolve("onnxruntime"), Quantize(precision="full")
    data = [by_name(name).example(4, seed=seed) for seed in range(3)]
    ranges = calibrate(program, data, tensors_to_observe(program, target, options))
    plan = plan_quantization(program, ranges, target, options)
    assert plan.kernels, "nothing was quantized"
    return Journal().apply(QuantizeTensors(plan), program)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_removal_is_zeroing_the_parameters_that_the_plan_names(name: str, seed: int) -> None:
    """The second oracle, which reads nothing but `plan.kept`."""
    program = captured(name, seed)
    plan = random_plan(analyse(program), seed, statistics=False)
    inputs = in_double(by_name(name).example(3, seed=seed, length=17))
    expected = call(zeroed(program, plan).to(torch.float64), inputs)
    found = call(PruneChannels(plan).run(program).program.to(torch.float64), inputs)
    assert largest_difference(found, expected) < EXACT


def optimized(name: str, folder: Path) -> None:
    """What a user does: one call, then the folder it leaves."""
    architecture = by_name(name)
    model = architecture.model(1)
    result = fxcompress.optimize(
        model,
        architecture.example(),
        dynamic_shapes=architecture.dynamic_shapes,
        prune=0.5,
        quantize="int8" if architecture.int8 else None,
        calibration=[architecture.example(4, seed=seed) for seed in range(3)],
    )
    report = result.report.to_dict()
    assert 0.49 <= report["after"]["macs"] / report["before"]["macs"] <= 0.5
    # Buffers by name: a rotary table is pruned too, and is in no state dict.
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    trainable = dict(result.trainable.module.state_dict())
    for tensor, dims in result.plan.kept.items():
        for dim, stay in dims.items():
            assert trainable[tensor].shape[dim] == len(stay) < parameters[tensor].shape[dim]
    result.save(folder)
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "program.fxc",
        "plan.json",
        "report.json",
    }
    feeds = zip(result.program.signature.inputs, at_sizes(result.program, name, 3, 12), strict=True)
    outputs = run(open_session(folder / "model.onnx"), {key: value.numpy() for key, value in feeds})
    expected = call(load(folder / "program.fxc"), architecture.example(3, seed=3, length=12))
    assert [value.shape for value in outputs.values()] == [tuple(tensor.shape) for tensor in expected]
    assert result.plan.precision or largest_difference(as_tensors(outputs), expected) < 1e-4


def as_tensors(arrays: Mapping[str, NDArray[Any]]) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays.values()]


@pytest.mark.parametrize("name", ["resnet_basic", "vit_packed"])
def test_optimize(name: str, tmp_path: Path) -> None:
    optimized(name, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("resnet_basic", "vit_packed")])
def test_optimize_more(name: str, tmp_path: Path) -> None:
    optimized(name, tmp_path / "out")
