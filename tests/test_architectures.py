"""The whole path on every architecture: each once here; more seeds, ONNX and INT8 in the slow tier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxcompress.analysis.groups import analyse
from fxcompress.graph.archive import load
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from fxcompress.recipes import LOSSLESS
from tests.architectures.catalog import NAMES, VARIANTS, by_name
from tests.architectures.programs import (
    EXACT,
    call,
    captured,
    in_double,
    largest_difference,
    random_plan,
    zeroed,
)

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


def pruned_and_proven(name: str, seed: int) -> Program:
    """Prune by a random plan and prove the removal by two oracles."""
    program = captured(name, seed)
    analysis = analyse(program)
    plan = random_plan(analysis, seed)
    pruned = PruneChannels(plan).run(program).program
    well_formed(pruned)
    proof = masked_equivalence(program, pruned, plan, seed=seed)
    assert proof.response > 1e-3, "the model hardly depends on its input: the proof proves little"
    assert analyse(pruned).price.at({}) == plan.after
    plain = random_plan(analysis, seed + 1, statistics=False)
    inputs = in_double(by_name(name).example(3, seed=seed, length=17))
    expected = call(zeroed(program, plain).to(torch.float64), inputs)
    found = call(PruneChannels(plain).run(program).program.to(torch.float64), inputs)
    assert largest_difference(found, expected) < EXACT
    return pruned


def lowered_and_run(name: str, program: Program) -> None:
    """Fuse, lower, and compare the session with the program at sizes that neither was traced with."""
    deployed = Journal().apply_all(LOSSLESS, program)
    model = lower(deployed)
    for batch, length in ((1, 9), (5, 17)):
        inputs = by_name(name).example(batch, seed=batch, length=length)
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        float_parity(deployed, model, deployed.flat_inputs(args, kwargs))


@each_architecture
def test_pruned_fused_and_lowered(name: str) -> None:
    lowered_and_run(name, pruned_and_proven(name, 0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_pruned_fused_and_lowered_with_other_seeds(name: str, seed: int) -> None:
    lowered_and_run(name, pruned_and_proven(name, seed))
