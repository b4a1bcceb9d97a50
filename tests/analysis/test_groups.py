"""Groups: which they are, what they are called, what is frozen and why, what couples what."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse, rivals
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from tests.architectures.programs import captured
from tests.ops.building import Net, aten


class Residual(nn.Module):
    """Two convolutions whose outputs meet in a sum, a third that reads it, and a cut by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.branch(x)
        value, gate = self.gate(x).chunk(2, dim=1)
        return self.head((value * gate.sigmoid()).mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> Program:
    return capture(Residual().eval(), (torch.randn(2, 3, 4, 4),))


def test_groups_and_their_members(residual: Program) -> None:
    trunk, gate = analyse(residual).groups
    assert trunk.name == "stem.weight[0]"
    assert trunk.size == 8
    assert {str(member) for member in trunk.members} == {
        "stem.weight[0]", "stem.bias[0]", "norm.weight[0]", "norm.bias[0]", "norm.running_mean[0]",
        "norm.running_var[0]", "branch.weight[0]", "branch.weight[1]", "branch.bias[0]", "gate.weight[1]",
    }  # fmt: skip
    assert gate.name == "gate.weight[0]"
    assert (gate.size, gate.positions) == (6, 1)
    assert {str(member) for member in gate.members} == {"gate.weight[0]", "gate.bias[0]", "head.weight[1]"}


def test_what_is_frozen_is_said_once_with_the_users_line(residual: Program) -> None:
    frozen = {item.axis: item for item in analyse(residual).frozen}
    assert set(frozen) == {"stem.weight[1]", "head.weight[0]", "head.bias[0]"}
    assert frozen["stem.weight[1]"].reason == "a model input"
    assert frozen["head.weight[0]"].reason == "a model output"


def test_why_names_the_operators_of_a_residual_sum(residual: Program) -> None:
    """From the stem to the branch that is added to it, by way of the sum."""
    steps = analyse(residual).why("stem.weight[0]", "branch.weight[0]")
    assert steps[0] == "stem.weight[0]"
    assert steps[-1] == "branch.weight[0]"
    assert any(step.startswith("add") and "aten.add.Tensor" in step for step in steps)
    assert any(step.endswith("x = x + self.branch(x)") for step in steps), steps


def test_why_names_the_operator_that_reads_channels(residual: Program) -> None:
    """Where a dimension disappears in a contraction, the contraction is the link."""
    steps = analyse(residual).why("branch.weight[0]", "gate.weight[1]")
    assert any("conv2d" in step and "self.gate(x)" in step for step in steps), steps


def test_why_passes_operators_with_several_results(residual: Program) -> None:
    steps = analyse(residual).why("gate.weight[0]", "head.weight[1]")
    assert any("chunk" in step for step in steps), steps
    assert any("linear" in step for step in steps)


def test_why_is_empty_between_uncoupled_dimensions(residual: Program) -> None:
    analysis = analyse(residual)
    assert analysis.why("stem.weight[0]", "gate.weight[0]") == []
    assert analysis.why("stem.weight[0]", "stem.weight[0]") == ["stem.weight[0]"]
    for name in ("nothing[0]", "stem.weight[7]", "stem.weight[a]"):
        with pytest.raises(InputError, match="no stored tensor has a dimension"):
            analysis.why("stem.weight[0]", name)


@torch.library.custom_op("fxcompress_tests::mirror", mutates_args=())
def mirror(x: Tensor) -> Tensor:
    """An operator nobody has a rule for."""
    return x.flip(1)


@mirror.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unknown(nn.Module):
    """A custom operator, and one of aten without a rule, between layers that could shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = mirror(self.first(x))
        x = self.second(x).renorm(2.0, 0, 1.0)
        return self.third(x)


def test_an_operator_without_a_rule_freezes_and_is_reported() -> None:
    model = Unknown().eval()
    net = Net(dynamic=False)
    x = net(torch.ops.fxcompress_tests.mirror.default, net.channels(8))
    y = net(aten.renorm.default, net(aten.linear.default, x, net.parameter(6, 8)), 2.0, 0, 1.0)
    analysis = analyse(net.program(net.read(y)))
    assert analysis.groups == ()
    reasons = {item.axis: item.reason for item in analysis.frozen}
    assert reasons["p0[0]"] == "no rule for fxcompress_tests.mirror.default"
    assert reasons["p2[0]"] == "no rule for aten.renorm.default"
    try:
        program = capture(model, (torch.randn(2, 5),))
    except Exception:  # noqa: BLE001  capture may refuse custom operators; then there is nothing to report
        return
    found = {item.axis: item for item in analyse(program).frozen}
    assert found["first.weight[0]"].size == 8
    assert found["first.weight[0]"].source.endswith("x = mirror(self.first(x))")


def test_operators_without_a_rule_are_reported_with_the_users_line() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).renorm(2, -1, 1.0)
            return self.second(x)

    frozen = {item.axis: item for item in analyse(capture(Sorted().eval(), (torch.randn(2, 5),))).frozen}
    item = frozen["first.weight[0]"]
    assert item.reason.startswith("no rule for aten.renorm")
    assert item.operator.startswith("renorm")
    assert item.source.endswith("x = self.first(x).renorm(2, -1, 1.0)")


def test_axes_of_one_dimension_are_numbered() -> None:
    net = Net(dynamic=False)
    x = net(aten.reshape.default, net.features(width=12), [2, 4, 3])
    analysis = analyse(net.program(net.read(net(aten.tanh.default, x))))
    assert [(group.name, group.size, group.positions) for group in analysis.groups] == [
        ("p0[0]:0", 4, 3),
        ("p0[0]:1", 3, 4),
    ]
    assert analysis.group("p0[0]:1").size == 3
    assert [[group.size for group in factor] for factor in rivals(analysis)[0]] == [[4], [3]]


def test_groups_of_buffers_are_ranked_like_any_other() -> None:
    net = Net(dynamic=False)
    table = net(aten.matmul.default, net.buffer(net.noise(5, 6)), net.buffer(net.noise(6, 5)))
    x = net(aten.matmul.default, net.features(4, width=5), net(aten.tanh.default, table))
    analysis = analyse(net.program(net.read(x)))
    assert 6 in [group.size for group in analysis.groups]
    assert plan_pruning(analysis, Prune(0.2), 1).channels


def test_analysis_is_roughly_linear() -> None:
    """Twice the layers take at most three times as long."""

    def chain(layers: int) -> Program:
        net = Net(dynamic=False)
        x = net.channels(16, 4)
        for _ in range(layers):
            y = net(aten.conv1d.default, net(aten.tanh.default, x), net.parameter(16, 16, 1))
            x = net(aten.add.Tensor, x, y)
        return net.program(net.read(x))

    def seconds(program: Program) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            analyse(program)
            times.append(time.process_time() - start)
        return min(times)

    short, long = chain(40), chain(80)
    assert seconds(long) < 3 * seconds(short) + 0.01


def test_analysis_of_a_transformer_is_quick() -> None:
    program = captured("hf_bert")
    start = time.process_time()
    analyse(program)
    assert time.process_time() - start < 0.2
