"""Skipped equivalence accepts what is right and catches what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fxcompress.analysis.cost import cost
from fxcompress.analysis.residual import residual_blocks, terms
from fxcompress.errors import ProofError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.passes.remove_blocks import RemoveBlocks
from fxcompress.plan.depth import DepthPlan
from fxcompress.proof.skipped import skipped_equivalence
from tests.passes.residual import stack


@pytest.fixture
def program() -> Program:
    return stack()


def plan_of(program: Program, *names: str) -> DepthPlan:
    blocks = {block.name: block.identity for block in residual_blocks(program)[0]}
    whole = cost(program)
    return DepthPlan({name: blocks[name] for name in names}, {}, {}, {}, whole, whole)


def removed(program: Program, *names: str) -> Program:
    return RemoveBlocks(plan_of(program, *names)).run(program).program


def test_the_right_program_passes(program: Program) -> None:
    report = skipped_equivalence(program, removed(program, "add_1"), plan_of(program, "add_1"))
    assert report.output_error < 1e-12
    assert report.response > 1e-3


def test_another_block_removed(program: Program) -> None:
    """The blocks have the same shapes: only values tell them apart."""
    with pytest.raises(ProofError, match="differs"):
        skipped_equivalence(program, removed(program, "add"), plan_of(program, "add_1"))


def test_one_block_too_many_or_too_few(program: Program) -> None:
    for names in (("add", "add_1"), ("add_2",)):
        with pytest.raises(ProofError, match="differs"):
            skipped_equivalence(program, removed(program, *names), plan_of(program, "add", "add_2"))
    with pytest.raises(ProofError, match="differs"):
        skipped_equivalence(program, program, plan_of(program, "add"))


def test_the_branch_kept_instead_of_the_identity(program: Program) -> None:
    wrong = program.copy()
    for node in wrong.graph.nodes:
        if node.name == "add":
            edit.replace_uses(node, terms(node)[1])
    edit.tidy(wrong)
    edit.reinfer(wrong)
    with pytest.raises(ProofError, match="differs"):
        skipped_equivalence(program, wrong, plan_of(program, "add"))
    plan = plan_of(program, "add")
    with pytest.raises(ProofError, match="differs"):
        skipped_equivalence(program, removed(program, "add"), replace(plan, removed={"add": 1}))


def test_a_weight_that_moved_on_the_way(program: Program) -> None:
    wrong = removed(program, "add")
    weight = walk.tensor(wrong, "b.up.weight").detach()
    edit.set_tensor(wrong, "b.up.weight", weight * (1 + 1e-6))
    with pytest.raises(ProofError, match="differs"):
        skipped_equivalence(program, wrong, plan_of(program, "add"))
    edit.set_tensor(wrong, "b.up.weight", weight[torch.arange(6).flip(0)])
    with pytest.raises(ProofError, match="differs"):
        skipped_equivalence(program, wrong, plan_of(program, "add"))
