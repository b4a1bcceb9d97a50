"""The mutation verbs: tied names, sharing between copies, placement, clean-up, metadata."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxcompress.graph import edit, walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from tests.graph.models import SmallNet, Tied, image

aten = torch.ops.aten


@pytest.fixture
def program() -> Program:
    return capture(SmallNet().eval(), image(2, 3, 8))


def call(program: Program, name: str) -> torch.fx.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def test_set_tensor_writes_every_tied_name_and_keeps_a_parameter() -> None:
    program = capture(Tied().eval(), torch.randn(2, 6))
    program.module.get_parameter("first.weight").requires_grad_(False)
    edit.set_tensor(program, "second.weight", torch.zeros(6, 6))
    first, second = (program.module.get_parameter(f"{name}.weight") for name in ("first", "second"))
    assert first is second
    assert isinstance(first, nn.Parameter) and not first.requires_grad
    assert torch.equal(first, torch.zeros(6, 6))
    assert walk.aliases(program, "second.weight") == ["first.weight", "second.weight"]


def test_edits_of_a_copy_leave_the_original(program: Program) -> None:
    before = str(program)
    expected = program(image(2, 3, 8))
    copy = program.copy()
    assert copy.module.get_parameter("conv.weight") is program.module.get_parameter("conv.weight")
    edit.set_tensor(copy, "conv.weight", torch.zeros(8, 3, 3, 3))
    edit.set_arg(call(copy, "mean"), 1, [3, 2])
    call(copy, "relu").meta["val"] = None
    edit.replace_uses(call(copy, "relu"), call(copy, "batch_norm"))
    edit.tidy(copy)
    assert str(program) == before
    assert torch.equal(program(image(2, 3, 8)), expected)


def test_new_calls_stand_where_asked_and_carry_the_users_line(program: Program) -> None:
    relu = call(program, "relu")
    doubled = edit.call_after(relu, aten.mul.Tensor, (relu, 2.0), name="doubled")
    changed = edit.replace_uses(relu, doubled)
    assert [node.name for node in changed] == ["mean"]
    before = edit.call_before(relu, aten.neg.default, (relu.args[0],))
    edit.set_arg(relu, 0, before)
    assert list(program.graph.nodes).index(doubled) == list(program.graph.nodes).index(relu) + 1
    assert before.next is relu
    assert walk.source(doubled) == walk.source(relu) and walk.source(relu) is not None
    edit.reinfer(program)
    edit.tidy(program)
    well_formed(program)


def test_a_call_after_an_input_stands_behind_all_inputs(program: Program) -> None:
    weight = call(program, "conv_weight")
    absolute = edit.call_after(weight, aten.abs.default, (weight,))
    edit.replace_uses(weight, absolute)
    edit.reinfer(program)
    program.module.recompile()
    well_formed(program)


def test_added_tensors_get_free_names_and_metadata(program: Program) -> None:
    first = edit.add_tensor(program, "extra.scale", torch.ones(8), trainable=True)
    second = edit.add_tensor(program, "extra.scale", torch.ones(8))
    assert (first.target, second.target) == ("extra.scale", "extra.scale_1")
    assert isinstance(walk.tensor(program, first), nn.Parameter)
    assert not isinstance(walk.tensor(program, second), nn.Parameter)
    assert walk.hint_shape(second) == (8,)
    edit.tidy(program)
    assert "extra.scale" not in dict(program.module.named_parameters())
    assert not hasattr(program.module, "extra")


def test_tidy_removes_what_nothing_reads(program: Program) -> None:
    edit.replace_uses(call(program, "batch_norm"), call(program, "conv2d"))
    edit.tidy(program)
    assert "aten.batch_norm.default" not in [str(node.target) for node in program.graph.nodes]
    assert not any(name.startswith("norm.") for name in program.module.state_dict())
    well_formed(program)


def test_tidy_keeps_both_names_of_a_tied_tensor() -> None:
    program = capture(Tied().eval(), torch.randn(2, 6))
    edit.tidy(program)
    assert {"first.weight", "second.weight"} <= set(
        dict(program.module.named_parameters(remove_duplicate=False))
    )


def test_reinfer_keeps_the_inputs_symbols(program: Program) -> None:
    batch = walk.shape(walk.placeholders(program)[0])[0]
    edit.reinfer(program)
    assert walk.shape(call(program, "relu"))[0] == batch
    assert walk.is_symbolic(call(program, "relu"), 0)
    assert not walk.is_symbolic(call(program, "relu"), 1)
