"""Every invariant has a broken graph that is caught, with the node named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fxcompress.errors import IllFormed
from fxcompress.graph import edit, walk
from fxcompress.graph.capture import capture
from fxcompress.graph.module import attach
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from tests.graph.models import SmallNet, image

aten = torch.ops.aten


@pytest.fixture(scope="module")
def captured() -> Program:
    return capture(SmallNet().eval(), image(2, 3, 8))


def call(program: Program, name: str) -> torch.fx.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def in_place(program: Program) -> None:
    edit.set_target(call(program, "relu"), aten.relu_.default)


def python_function(program: Program) -> None:
    edit.set_target(call(program, "relu"), torch.relu)


def reading_files(program: Program) -> None:
    edit.set_target(call(program, "relu"), aten.from_file.default)


def module_call(program: Program) -> None:
    with program.graph.inserting_before(walk.output_node(program)):
        program.graph.call_module("conv", (walk.placeholders(program)[0],))


def late_tensor(program: Program) -> None:
    walk.output_node(program).prepend(call(program, "conv_weight"))


def unused_tensor(program: Program) -> None:
    edit.add_tensor(program, "idle", torch.ones(3))


def stored_tensor_without_node(program: Program) -> None:
    attach(program.module, "forgotten", torch.ones(3))


def missing_tensor(program: Program) -> None:
    call(program, "conv_bias").target = "conv.absent"


def same_tensor_twice(program: Program) -> None:
    twin = edit.add_tensor(program, "twin", torch.ones(8))
    attach(program.module, "twin", walk.tensor(program, "conv.bias").data)
    edit.set_arg(call(program, "conv2d"), 2, twin)
    edit.set_arg(call(program, "batch_norm"), 1, call(program, "conv_bias"))


def wrong_size(program: Program) -> None:
    edit.set_tensor(program, "conv.weight", torch.ones(7, 3, 3, 3))


def stale_metadata(program: Program) -> None:
    edit.set_tensor(program, "fc.bias", torch.ones(8, dtype=torch.float64))


def changed_operator(program: Program) -> None:
    edit.set_arg(call(program, "mean"), 1, [2])


def no_metadata(program: Program) -> None:
    del call(program, "relu").meta["val"]


def wrong_input_name(program: Program) -> None:
    program.signature = replace(program.signature, inputs=("y",))


def wrong_output_count(program: Program) -> None:
    program.signature = replace(program.signature, outputs=("a", "b"))


def wrong_dynamic(program: Program) -> None:
    program.signature = replace(program.signature, dynamic={"x": {0: "batch", 2: "height"}})


def static_claimed(program: Program) -> None:
    program.signature = replace(program.signature, dynamic={})


def constant_output(program: Program) -> None:
    walk.output_node(program).args = ((None,),)


BREAKS = [
    in_place, python_function, reading_files, module_call, late_tensor, unused_tensor,
    stored_tensor_without_node, missing_tensor, same_tensor_twice, wrong_size, stale_metadata,
    changed_operator, no_metadata, wrong_input_name, wrong_output_count, wrong_dynamic,
    static_claimed, constant_output,
]  # fmt: skip


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_a_broken_program_is_caught(captured: Program, damage: Callable[[Program], None]) -> None:
    program = captured.copy()
    well_formed(program)
    damage(program)
    with pytest.raises(IllFormed):
        well_formed(program)
    well_formed(captured)


def test_the_fault_names_the_node_and_the_users_line(captured: Program) -> None:
    program = captured.copy()
    wrong_size(program)
    with pytest.raises(IllFormed) as caught:
        edit.reinfer(program)
    assert "conv2d" in str(caught.value.node)
    assert str(caught.value.source).startswith("models.py:")
    assert "self.conv" in str(caught.value.source)
