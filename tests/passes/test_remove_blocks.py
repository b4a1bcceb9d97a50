"""A residual block that a plan names becomes its identity, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.cost import cost
from fxcompress.analysis.influence import influence
from fxcompress.analysis.residual import residual_blocks
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.remove_blocks import RemoveBlocks
from fxcompress.plan.depth import Depth, DepthPlan, plan_depth
from fxcompress.proof.parity import parity_at_sizes
from fxcompress.proof.skipped import skipped_equivalence
from tests.architectures.programs import captured
from tests.passes.models import Apply, Chain
from tests.passes.residual import Residual, convolutions, program_of, stack


def planned(program: Program, ratio: float = 0.3) -> DepthPlan:
    blocks = residual_blocks(program)[0]
    return plan_depth(program, Depth(ratio), influence(program, blocks, [program.example.args[0]]))


def removing(program: Program, *names: str) -> DepthPlan:
    """A plan that removes the named additions."""
    blocks = {block.name: block.identity for block in residual_blocks(program)[0]}
    whole = cost(program)
    return DepthPlan({name: blocks[name] for name in names}, {}, {}, {}, whole, whole)


def test_listing_before_and_after() -> None:
    program = program_of(Chain(a=Residual(4, 6), b=Residual(4, 6), h=nn.Linear(4, 3)), 2, 4)
    outcome = RemoveBlocks(removing(program, "add")).run(program)
    assert str(program).splitlines()[13:21] == [
        "operators:",
        "  linear: f32[batch, 6] = linear(x, a_up_weight, a_up_bias)  # a.up",
        "  relu: f32[batch, 6] = relu(linear)  # a",
        "  linear_1: f32[batch, 4] = linear(relu, a_down_weight, a_down_bias)  # a.down",
        "  add: f32[batch, 4] = add.Tensor(x, linear_1)  # a",
        "  linear_2: f32[batch, 6] = linear(add, b_up_weight, b_up_bias)  # b.up",
        "  relu_1: f32[batch, 6] = relu(linear_2)  # b",
        "  linear_3: f32[batch, 4] = linear(relu_1, b_down_weight, b_down_bias)  # b.down",
    ]
    assert str(outcome.program).splitlines()[9:14] == [
        "operators:",
        "  linear_2: f32[batch, 6] = linear(x, b_up_weight, b_up_bias)  # b.up",
        "  relu_1: f32[batch, 6] = relu(linear_2)  # b",
        "  linear_3: f32[batch, 4] = linear(relu_1, b_down_weight, b_down_bias)  # b.down",
        "  add_1: f32[batch, 4] = add.Tensor(x, linear_3)  # b",
    ]
    assert outcome.changed == ("add is x: 3 operators of a",)


@pytest.mark.parametrize("build", [stack, convolutions])
def test_removes_in_float64(build) -> None:
    """The program without blocks is the original with `f(x)` times zero, and costs what the plan says."""
    program = build()
    before = str(program)
    plan = planned(program)
    outcome = RemoveBlocks(plan).run(program)
    well_formed(outcome.program)
    assert outcome.declined == ()
    assert len(outcome.changed) == len(plan.removed) >= 1
    assert skipped_equivalence(program, outcome.program, plan).response > 0
    left = cost(outcome.program)
    assert (left.params, left.bytes) == (plan.after.params, plan.after.bytes)
    assert left.macs == pytest.approx(plan.after.macs)
    assert str(program) == before


@pytest.mark.parametrize("name", [pytest.param("hf_gpt2", marks=pytest.mark.slow), "preactivation_resnet"])
def test_removes_every_block_alone(name: str) -> None:
    program = captured(name)
    blocks = residual_blocks(program)[0]
    assert blocks
    for block in blocks[:3]:
        plan = removing(program, block.name)
        outcome = RemoveBlocks(plan).run(program)
        well_formed(outcome.program)
        skipped_equivalence(program, outcome.program, plan)


def test_chains_and_nests_go_at_once() -> None:
    program = stack()
    names = [block.name for block in residual_blocks(program)[0]]
    plan = removing(program, *names)
    outcome = RemoveBlocks(plan).run(program)
    skipped_equivalence(program, outcome.program, plan)
    assert [node.target for node in outcome.program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.linear.default
    ] * 2

    def nested(model: nn.Module, x: Tensor) -> Tensor:
        y = model.l(x)
        z = model.l(y).relu()
        return (y + model.k(z + model.k(z))).relu()

    program = program_of(Apply(nested, l=nn.Linear(4, 4), k=nn.Linear(4, 4)), 3, 4)
    plan = removing(program, "add", "add_1")
    skipped_equivalence(program, RemoveBlocks(plan).run(program).program, plan)


def test_the_result_runs_in_the_runtime_at_other_sizes() -> None:
    program = convolutions()
    result = RemoveBlocks(planned(program)).run(program).program
    parity_at_sizes(result, lower(result))


def test_declines_what_is_no_block_of_this_program() -> None:
    program = stack()
    plan = removing(program, "add")
    other = convolutions()
    for wrong in (
        replace(plan, removed={"add_9": 0}),
        replace(plan, removed={"add": 1}),
        replace(plan, removed={"linear": 0}),
    ):
        outcome = RemoveBlocks(wrong).run(program)
        assert outcome.program is program
        assert [item.site for item in outcome.declined] == list(wrong.removed)
    outcome = RemoveBlocks(replace(plan, removed={"add_1": 0})).run(other)
    assert "neither term" in outcome.declined[0].reason
    assert outcome.declined[0].source is not None


def test_declines_the_last_block_between_input_and_output() -> None:
    program = program_of(Chain(a=Residual(4, 6), b=Residual(4, 6)), 2, 4)
    plan = replace(removing(program, "add_1"), removed={"add": 0, "add_1": 0})
    outcome = RemoveBlocks(plan).run(program)
    assert outcome.changed == ("add is x: 3 operators of a",)
    assert [item.site for item in outcome.declined] == ["add_1"]
    assert "would be an input" in outcome.declined[0].reason
