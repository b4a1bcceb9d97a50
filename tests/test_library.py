"""Models of the `transformers` library: what no rule describes is named, removal is proven, ONNX agrees.

One test for some of each kind in the default tier; the others, other seeds and ONNX in the slow one.
"""

from __future__ import annotations

import pytest

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from fxcompress.recipes import LOSSLESS
from tests.architectures.catalog import LIBRARY, by_name
from tests.architectures.catalog_library import CHEAP, STATIC, WITHOUT_RULE
from tests.architectures.golden import below_the_table
from tests.architectures.programs import (
    at_sizes,
    call,
    captured,
    exported_again,
    largest_difference,
    random_plan,
)

NAMES = [architecture.name for architecture in LIBRARY]
TIERED = [pytest.param(name, marks=() if name in CHEAP else pytest.mark.slow) for name in NAMES]


def without_rule(analysis: Analysis) -> set[str]:
    """The operators that freeze what they touch because no rule describes them."""
    operators = {str(node.name): str(node.target) for node in analysis.program.graph.nodes}
    return {operators[str(item.operator)] for item in analysis.frozen if "rule" in item.reason}


def pruned_and_proven(name: str, seed: int) -> Program:
    """Prune by a random plan that keeps at least a quarter of each group, and prove the removal."""
    program = captured(name)
    analysis = analyse(program)
    plan = random_plan(analysis, seed, least=0.25)
    pruned = PruneChannels(plan).run(program).program
    well_formed(pruned)
    proof = masked_equivalence(program, pruned, plan, seed=seed)
    assert proof.response > 1e-4, "the model hardly depends on its input: the proof proves little"
    assert analyse(pruned).price.at({}) == plan.after
    return pruned


def other_sizes(program: Program) -> tuple[int, int]:
    """Another batch and length than the program was captured with, where it allows another."""
    axes = {dim for dims in program.signature.dynamic.values() for dim in dims}
    return (5 if 0 in axes else 2), (17 if 1 in axes else 12)


@pytest.mark.parametrize("name", TIERED)
def test_analysis_names_what_no_rule_describes(name: str) -> None:
    program = captured(name)
    static = not any(0 in axes for axes in program.signature.dynamic.values())
    assert static == (name in STATIC)
    analysis = analyse(program)
    assert without_rule(analysis) == set(WITHOUT_RULE.get(name, ()))
    assert len(analysis.groups) > 3
    assert not below_the_table(name, program)


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_removal_is_proven(name: str) -> None:
    pruned_and_proven(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_removal_is_proven_and_runs_as_onnx(name: str) -> None:
    architecture = by_name(name)
    batch, length = other_sizes(captured(name))
    inputs = architecture.example(batch, seed=7, length=length)
    assert largest_difference(call(captured(name), inputs), call(architecture.model(), inputs)) < 1e-5
    deployed = Journal().apply_all(LOSSLESS, pruned_and_proven(name, 1))
    float_parity(deployed, lower(deployed), at_sizes(deployed, name, batch, length))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_removal_is_proven_for_other_seeds(name: str, seed: int) -> None:
    pruned_and_proven(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_model_is_captured_again(name: str) -> None:
    """What was pruned is a model like any other: it is exported from its module alone."""
    architecture = by_name(name)
    pruned = pruned_and_proven(name, 2)
    batch, length = other_sizes(captured(name))
    others = architecture.example(batch, seed=7, length=length)
    exported_again(pruned, architecture.example(), others, architecture.dynamic_shapes)
