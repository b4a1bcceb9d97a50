"""A program as a whole: calling, copying, converting, training, printing, running node by node."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx

from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from tests.graph.models import Apply, SmallNet, Tied, image


@pytest.fixture
def program() -> Program:
    return capture(SmallNet().eval(), image(2, 3, 8))


LISTING = """\
inputs:
  x: f32[batch, 6]
tensors:
  first_weight: f32[6, 6] parameter first.weight = second.weight
  first_bias: f32[6] parameter first.bias
  second_bias: f32[6] parameter second.bias
operators:
  linear: f32[batch, 6] = linear(x, first_weight, first_bias)  # first
  linear_1: f32[batch, 6] = linear(linear, first_weight, second_bias)  # second
outputs:
  hidden: f32[batch, 6] = linear
  logits: f32[batch, 6] = linear_1"""


def test_a_program_prints_as_a_listing() -> None:
    assert str(capture(Tied().eval(), torch.randn(2, 6))) == LISTING


def test_a_wrong_fixed_size_is_refused_by_name(program: Program) -> None:
    with pytest.raises(InputError, match=r"input x .*batch, 3, 8, 8"):
        program(image(2, 3, 9))


def test_a_copy_is_the_same_program(program: Program) -> None:
    duplicate = program.copy()
    assert str(duplicate) == str(program)
    assert duplicate.graph is not program.graph
    well_formed(duplicate)
    own = program.copy(share=False)
    assert own.module.get_parameter("fc.weight") is not program.module.get_parameter("fc.weight")
    torch.testing.assert_close(own(image(1, 3, 8)), program(image(1, 3, 8)))


def test_a_deep_copy_owns_its_tensors(program: Program) -> None:
    own = copy.deepcopy(program)
    assert str(own) == str(program)
    assert own.module.get_parameter("fc.weight") is not program.module.get_parameter("fc.weight")


def test_a_copy_without_sharing_keeps_ties() -> None:
    own = capture(Tied().eval(), torch.randn(2, 6)).copy(share=False)
    assert own.module.get_parameter("first.weight") is own.module.get_parameter("second.weight")
    well_formed(own)


def test_double_precision_is_double_throughout() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(x.shape[0], dtype=torch.float32)[:, None, None, None]
        return (m.conv(x).to(torch.float32) + ramp) / torch.full((x.shape[0], 1, 1, 1), 3.0)

    program = capture(Apply(forward).eval(), image())
    double = program.to(torch.float64)
    well_formed(double)
    floats = [
        node for node in double.graph.nodes if walk.is_tensor(node) and walk.dtype(node).is_floating_point
    ]
    assert {walk.dtype(node) for node in floats} == {torch.float64}
    assert double.example.args[0].dtype == torch.float64
    difference = (double(image().double()) - program(image())).abs().max()
    assert 0 < difference < 1e-5
    assert walk.dtype(walk.placeholders(program)[0]) == torch.float32


def test_casts_to_half_precision_stay_with_a_note() -> None:
    program = capture(Apply(lambda m, x: m.conv(x).half().float()).eval(), image())
    double = program.to(torch.float64)
    assert any(walk.dtype(node) == torch.float16 for node in double.graph.nodes if walk.is_tensor(node))
    assert any("half precision" in note for note in double.notes)


def test_training_updates_statistics_and_parameters_and_eval_brings_inference_back(program: Program) -> None:
    program = program.copy(share=False)
    data = image(8, 3, 8)
    before = program(data)
    assert not program.training
    program.train()
    assert program.training and program.copy().training
    mean = program.module.get_buffer("norm.running_mean").clone()
    optimizer = torch.optim.SGD(program.module.parameters(), lr=0.1)
    assert not torch.equal(program(data), program(data)), "dropout draws"
    first = program(data).square().mean()
    first.backward()
    optimizer.step()
    assert not torch.equal(program.module.get_buffer("norm.running_mean"), mean)
    program.eval()
    after = program(data)
    assert torch.equal(after, program(data))
    assert not torch.equal(after, before)
    well_formed(program)


def test_training_matches_the_model() -> None:
    model = SmallNet().eval()
    program = capture(model, image(2, 3, 8)).train()
    model.train()
    torch.manual_seed(1)
    expected = model(image(8, 3, 8))
    torch.manual_seed(1)
    torch.testing.assert_close(program(image(8, 3, 8)), expected)
    torch.testing.assert_close(program.module.get_buffer("norm.running_var"), model.norm.running_var)


def test_the_modules_own_switches_work(program: Program) -> None:
    module = copy.deepcopy(program.module)
    assert module.train().training
    assert any(node.args[2] is True for node in module.graph.nodes if "dropout" in str(node.target))
    assert not module.eval().training
    torch.testing.assert_close(module(image(1, 3, 8)), program(image(1, 3, 8)))


def test_norms_without_statistics_have_no_modes() -> None:
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3, track_running_stats=False), torch.nn.InstanceNorm2d(3)
    ).eval()
    program = capture(model, image(2, 3, 8))
    expected = program(image(4, 3, 8))
    torch.testing.assert_close(expected, model(image(4, 3, 8)))
    assert torch.equal(program.train()(image(4, 3, 8)), expected)
    assert torch.equal(program.eval()(image(4, 3, 8)), expected)


class Doubler(Executor):
    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.seen: list[str] = []

    def after(self, node: fx.Node, value: Any) -> Any:
        self.seen.append(node.name)
        return value * 2 if node.name == "relu" else value


def test_the_executor_shows_and_replaces_values(program: Program) -> None:
    flat = program.flat_inputs((image(3, 3, 8),), {})
    assert torch.equal(run_flat(program, flat)[0], program(image(3, 3, 8)))
    executor = Doubler(program)
    with torch.no_grad():
        doubled = executor.run_flat(flat)[0]
    assert executor.seen == [node.name for node in program.graph.nodes]
    assert not torch.allclose(doubled, program(image(3, 3, 8)))


def test_outputs_that_are_parameters_are_plain_numbers() -> None:
    """Once `numpy()` refused them wherever a proof or a metric looked at outputs."""
    program = capture(Apply(lambda m, x: (m.conv(x), m.conv.weight)).eval(), image(2, 4, 8))
    flat = program.flat_example()
    with torch.no_grad():
        outputs = [*run_flat(program, flat), *Executor(program).run_flat(flat)]
    assert not any(value.requires_grad for value in outputs)
    with torch.enable_grad():
        assert all(value.requires_grad for value in Executor(program).run_flat(flat))


def test_walk_answers_from_metadata(program: Program) -> None:
    relu = next(node for node in program.graph.nodes if node.name == "relu")
    assert walk.hint_shape(relu) == (2, 8, 8, 8)
    assert walk.module_path(relu) == "act"
    assert walk.source(relu) == "models.py:25: y = self.act(self.norm(self.conv(x)))"
    assert [node.name for node in walk.consumers(relu)] == ["mean"]
    assert walk.argument(relu.all_input_nodes[0], "eps") == 1e-5
    conv = next(node for node in program.graph.nodes if node.name == "conv2d")
    assert walk.argument(conv, "groups") == 1
    assert {node.target for node in walk.parameter_nodes(program)} == {
        name for name, _ in program.module.named_parameters()
    }
