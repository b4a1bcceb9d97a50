"""Removal: what the graph looks like before and after, and that no member of a group can be left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.analysis.groups import analyse
from fxcompress.errors import IllFormed
from fxcompress.graph import edit, walk
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from fxcompress.proof.masked import masked_equivalence
from tests.architectures.programs import random_plan
from tests.ops.building import Net, aten
from tests.passes.models import Apply


def residual() -> Program:
    """A trunk of six channels, a branch of eight and back, a norm, a reader."""
    net = Net(dynamic=False)
    x = net.channels(6, 4)
    y = net(aten.conv1d.default, net(aten.tanh.default, x), net.parameter(8, 6, 1), net.parameter(8))
    y = net(aten.conv1d.default, net(aten.tanh.default, y), net.parameter(6, 8, 1))
    x = net(aten.add.Tensor, x, y)
    x = net(aten.group_norm.default, x, 3, net.parameter(6), net.parameter(6))
    return net.program(net.read(x))


def plan_of(program: Program) -> PruningPlan:
    """The first half of every group stays."""
    analysis = analyse(program)
    return make_plan(analysis, {g.name: tuple(range((g.size + 1) // 2)) for g in analysis.groups})


def shapes(program: Program) -> dict[str, tuple[int, ...]]:
    return {str(node.target): tuple(walk.tensor(program, node).shape) for node in walk.tensor_nodes(program)}


def test_tensors_shrink_and_constants_follow() -> None:
    program = residual()
    outcome = PruneChannels(plan_of(program)).run(program)
    assert shapes(program) == {
        "p0": (6, 3, 1), "p1": (6,), "p2": (8, 6, 1), "p3": (8,), "p4": (6, 8, 1), "p5": (6,), "p6": (6,),
        "p7": (24, 3),
    }  # fmt: skip
    assert shapes(outcome.program) == {
        "p0": (2, 3, 1), "p1": (2,), "p2": (4, 2, 1), "p3": (4,), "p4": (2, 4, 1), "p5": (2,), "p6": (2,),
        "p7": (8, 3),
    }  # fmt: skip
    norm = next(node for node in outcome.program.graph.nodes if node.target is aten.group_norm.default)
    assert walk.argument(norm, "num_groups") == 2
    assert set(outcome.changed) == {"p0[0]:0: 3 -> 2", "p0[0]:1: 2 -> 1", "p2[0]: 8 -> 4"}
    well_formed(outcome.program)


def test_the_program_given_stays_as_it_was() -> None:
    program = residual()
    text, before = str(program), {name: t.clone() for name, t in program.module.state_dict().items()}
    PruneChannels(plan_of(program)).run(program)
    assert str(program) == text
    assert all(torch.equal(before[name], tensor) for name, tensor in program.module.state_dict().items())


def test_an_empty_plan_returns_the_same_program() -> None:
    program = residual()
    outcome = PruneChannels(make_plan(analyse(program), {})).run(program)
    assert outcome.program is program
    assert outcome.changed == ()


def test_parameters_stay_parameters_and_buffers_buffers() -> None:
    net = Net(dynamic=False)
    x = net(aten.mul.Tensor, net.channels(6), net.buffer(torch.ones(6)))
    program = net.program(net.read(x))
    dict(program.module.named_parameters())["p1"].requires_grad_(False)
    pruned = PruneChannels(plan_of(program)).run(program).program
    found = {name: parameter.requires_grad for name, parameter in pruned.module.named_parameters()}
    assert found == {"p0": True, "p1": False, "p3": True}
    assert [name for name, _ in pruned.module.named_buffers()] == ["b2"]


def test_every_split_becomes_one_with_sizes() -> None:
    """Halves that shrink differently are no longer halves."""
    net = Net(dynamic=False)
    pieces = net(aten.chunk.default, net.channels(8), 2, 1)
    outputs = [net.read(net(aten.tanh.default, net.item(pieces, place))) for place in range(2)]
    program = net.program(*outputs)
    first, second = (group.name for group in analyse(program).groups)
    plan = make_plan(analyse(program), {first: (0,), second: (1, 2, 3)})
    pruned = PruneChannels(plan).run(program).program
    (node,) = (n for n in pruned.graph.nodes if n.target is aten.split_with_sizes.default)
    assert node.args[1:] == ([1, 3], 1)


def test_no_member_of_a_group_can_be_left_out() -> None:
    """Put back any one tensor in its original size, and the graph no longer fits together."""
    program = residual()
    plan = plan_of(program)
    pruned = PruneChannels(plan).run(program).program
    assert len(plan.kept) == 8
    for name in plan.kept:
        broken = pruned.copy()
        edit.set_tensor(broken, name, walk.tensor(program, name))
        for node in broken.graph.nodes:
            if node.op == "get_attr" and node.target == name:
                node.meta["val"] = next(n for n in program.graph.nodes if n.target == name).meta["val"]
        with pytest.raises(IllFormed):
            edit.reinfer(broken)


class Tied(nn.Module):
    """An embedding that is also the classifier, and a block that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.block = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8))
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for _ in range(2):
            x = x + self.block(x)
        return self.head(x)


def test_names_ties_training_and_archives_survive(tmp_path: Path) -> None:
    """Both names of a tied tensor shrink; the result trains and is saved like any program."""
    program = capture(Tied().eval(), (torch.tensor([[1, 2, 3], [4, 5, 6]]),))
    pruned = PruneChannels(plan_of(program)).run(program).program
    state = pruned.module.state_dict()
    assert set(state) == set(Tied().state_dict())
    assert state["table.weight"].shape == state["head.weight"].shape == (7, 4)
    assert state["block.0.weight"].shape == (3, 4)
    parameters = dict(pruned.module.named_parameters(remove_duplicate=False))
    assert parameters["table.weight"] is parameters["head.weight"]
    ids = torch.tensor([[0, 1, 2, 3]])[:, :3]
    pruned.module(ids).sum().backward()
    assert parameters["table.weight"].grad.abs().sum() > 0
    pruned.save(tmp_path / "program.fxc")
    assert torch.equal(load(tmp_path / "program.fxc")(ids), pruned(ids))


def test_a_pruned_program_is_pruned_again() -> None:
    program = residual()
    once = PruneChannels(plan_of(program)).run(program).program
    twice = PruneChannels(plan_of(once)).run(once).program
    assert shapes(twice)["p2"] == (2, 1, 1)
    well_formed(twice)


@pytest.mark.filterwarnings("ignore:Using torch.cross")
def test_three_points_are_not_taken_for_three_components() -> None:
    """`cross` without a dimension takes the first of size three."""

    def areas(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        left, right = m.a(x).view(-1, 6, 3), m.b(x).view(-1, 6, 3)
        return m.head(torch.cross(left, right).flatten(1))

    model = Apply(areas, a=nn.Linear(5, 18), b=nn.Linear(5, 18), head=nn.Linear(18, 2)).eval()
    result = fxcompress.optimize(model, torch.randn(2, 5), prune=fxcompress.Prune(0.5, block=1))
    assert result.trainable.module.get_parameter("head.weight").shape == (2, 9)


@pytest.mark.parametrize(("first", "second"), [(4, 6), (6, 4), (6, 9), (4, 3)])
def test_group_counts_with_no_multiple_among_them_share_what_they_can(first: int, second: int) -> None:
    """Whole blocks that both partitions have, and positions within the finest blocks; the rest stays."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 36, 1), nn.Conv2d(36, 36, 1, groups=first), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(36, 36, 1, groups=second), nn.ReLU(), nn.Conv2d(36, 5, 1))
    program = capture(model.eval(), torch.randn(2, 3, 4, 4))
    analysis = analyse(program)
    both = {("1.weight", 0), ("3.weight", 1)}
    assert any(both <= {(item.tensor, item.dim) for item in group.members} for group in analysis.groups)
    for seed in range(3):
        plan = random_plan(analysis, seed)
        masked_equivalence(program, PruneChannels(plan).run(program).program, plan)
