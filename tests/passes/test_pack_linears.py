"""Parts are packed again under the user's name, cut or not; the program computes what it did."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from fxcompress.analysis.groups import analyse
from fxcompress.graph import edit, walk
from fxcompress.graph.origins import Origins
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.passes.split_packed_linears import SplitPackedLinears
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from fxcompress.proof.masked import masked_equivalence
from tests.architectures.programs import random_plan
from tests.passes import packed
from tests.passes.models import assert_same_function
from tests.passes.test_split_packed_linears import captured


@cache
def pruned(name: str) -> tuple[PruningPlan, Program]:
    """The value width goes from eight to five, that of query and key to six."""
    program = captured(name)
    analysis = analyse(SplitPackedLinears().run(program).program)
    widths = [group.name for group in analysis.groups if group.size == packed.HEAD]
    stay = ((0, 1, 2, 4, 5, 7), (1, 2, 3, 5, 6))
    plan = make_plan(analysis, dict(zip(widths, stay, strict=True)))
    return plan, PruneChannels(plan).run(program).program


@pytest.mark.parametrize("name", packed.MODELS)
def test_what_was_one_linear_is_one_again(name: str) -> None:
    _, parts = pruned(name)
    outcome = PackLinears().run(parts)
    well_formed(outcome.program)
    assert outcome.declined == ()
    assert len(outcome.changed) == 1
    assert_same_function(parts, outcome.program)


def linears(program: Program) -> int:
    return sum(node.target is torch.ops.aten.linear.default for node in program.graph.nodes)


def test_the_packed_tensors_are_the_users_without_what_was_removed() -> None:
    """Name by name, value by value, as `plan.kept` says."""
    plan, parts = pruned("timm")
    program, whole = captured("timm"), PackLinears().run(parts).program
    assert linears(program) == linears(whole) == linears(parts) - 2
    assert set(whole.module.state_dict()) == set(program.module.state_dict())
    assert whole.origins.tensors == {}
    assert "1.qkv.weight" in plan.kept
    for name, tensor in program.module.state_dict().items():
        for dim, stay in plan.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(stay))
        assert torch.equal(tensor, whole.module.state_dict()[name])


def test_rows_in_another_order_have_another_name_and_an_origin() -> None:
    """Of (heads, 3, width) rows the parts alternate: packed part by part, the order is not the user's."""
    _, parts = pruned("interleaved")
    whole = PackLinears().run(parts).program
    state = whole.module.state_dict()
    assert "1.qkv.weight_packed" in state
    assert "1.qkv.weight" not in state
    assert sorted(whole.origins.tensors["1.qkv.weight_packed"].positions) == list(range(34))


def test_a_packed_program_is_pruned_again() -> None:
    """The second plan speaks of the packed tensors, in either order of rows."""
    for name in ("timm", "interleaved"):
        whole = PackLinears().run(pruned(name)[1]).program
        plan = random_plan(analyse(whole), 5)
        assert "1.qkv.weight" in plan.kept
        masked_equivalence(whole, PruneChannels(plan).run(whole).program, plan)


def test_what_was_not_split_is_left_alone() -> None:
    program = captured("timm")
    assert PackLinears().run(program).program is program


def test_linears_that_happen_to_read_one_input_are_left_alone() -> None:
    """Without an origin nothing says that they were one."""
    _, parts = pruned("timm")
    stranger = parts.copy()
    stranger.origins = Origins()
    assert PackLinears().run(stranger).changed == ()


def test_declined_where_one_part_reads_another_input() -> None:
    _, parts = pruned("timm")
    moved = parts.copy()
    part = next(
        node for node in moved.graph.nodes if node.op == "get_attr" and node.target == "1.qkv.weight_1"
    )
    (call,) = walk.consumers(part)
    twice = edit.call_before(call, torch.ops.aten.tanh.default, (call.args[0],))
    edit.annotate(twice)
    edit.set_arg(call, 0, twice)
    edit.tidy(moved)
    outcome = PackLinears().run(moved)
    assert outcome.program is moved
    assert [item.site for item in outcome.declined] == ["1.qkv.weight"]


def test_parameters_stay_as_trainable_as_they_were() -> None:
    _, parts = pruned("timm")
    frozen = parts.copy(share=False)
    for name, parameter in frozen.module.named_parameters():
        parameter.requires_grad_("weight" not in name)
    state = dict(PackLinears().run(frozen).program.module.named_parameters())
    assert isinstance(state["1.qkv.weight"], nn.Parameter)
    assert (state["1.qkv.weight"].requires_grad, state["1.qkv.bias"].requires_grad) == (False, True)
