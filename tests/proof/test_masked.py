"""Masked equivalence: faults it must catch, however small or hidden, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import fxcompress
from fxcompress.analysis.groups import analyse
from fxcompress.axes.expression import Axis, Concat, Dim, find
from fxcompress.axes.positions import Indices
from fxcompress.axes.positions import kept as kept_positions
from fxcompress.errors import ProofError
from fxcompress.graph import edit, walk
from fxcompress.graph.capture import capture
from fxcompress.graph.execute import Executor
from fxcompress.graph.program import Program
from fxcompress.passes import prune_channels
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan import pruning_plan
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from fxcompress.proof.comparison import equivalence, variations
from fxcompress.proof.masked import masked_equivalence
from tests.ops.building import Net, aten


@dataclass(frozen=True)
class Pruned:
    """A program, a plan and the result, which is right until a test spoils a copy of it."""

    program: Program
    plan: PruningPlan
    result: Program

    def check(self, result: Program | None = None) -> None:
        masked_equivalence(self.program, self.result if result is None else result, self.plan)

    def spoiled(self, name: str, change: Callable[[Tensor], Tensor]) -> Program:
        """The result with one of its tensors changed."""
        copy = self.result.copy()
        edit.set_tensor(copy, name, change(walk.tensor(copy, name).detach().clone()))
        return copy


def prune(program: Program, channels: Mapping[str, tuple[int, ...]]) -> Pruned:
    plan = make_plan(analyse(program), channels)
    pruned = Pruned(program, plan, PruneChannels(plan).run(program).program)
    pruned.check()
    return pruned


def residual() -> Pruned:
    """Linears p0, p1 (6 rows), p2 (6 rows) in a sum, then p4 (5 rows) and a reader."""
    net = Net(dynamic=False)
    x = net(aten.linear.default, net.input(3), net.parameter(6, 3), net.parameter(6))
    y = net(aten.linear.default, net(aten.tanh.default, x), net.parameter(6, 6), net.parameter(6))
    x = net(aten.tanh.default, net(aten.add.Tensor, x, y))
    x = net(aten.linear.default, x, net.parameter(6, 6), net.parameter(6))
    program = net.program(net(aten.linear.default, net(aten.tanh.default, x), net.parameter(3, 6)))
    return prune(program, {"p0[0]": (0, 2, 5), "p4[0]": (1, 2, 3)})


def heads(net: Net, x: fx.Node, count: int, width: int) -> fx.Node:
    """`[2, 5, C] => [2, count, 5, width]` through a linear of its own."""
    y = net(aten.linear.default, x, net.parameter(count * width, net.shape(x)[-1]))
    return net(aten.transpose.int, net(aten.reshape.default, y, [2, 5, count, width]), 1, 2)


def attention(rotate: bool = False) -> Program:
    """Four heads of width four; p0, p1, p2 are q, k and v. Rotated, if asked, by halves."""
    net = Net(dynamic=False)
    x = net.input(5, 3)
    q, k, v = (net(aten.mul.Scalar, heads(net, x, 4, 4), 2.0) for _ in range(3))
    if rotate:
        angles = net.noise(5, 2)
        tables = [net.buffer(torch.cat([f(angles), f(angles)], 1)) for f in (torch.cos, torch.sin)]
        q, k = (rotated(net, value, *tables) for value in (q, k))
    y = net(aten.transpose.int, net(aten.scaled_dot_product_attention.default, q, k, v), 1, 2)
    return net.program(net.read(net(aten.reshape.default, y, [2, 5, 16])))


def rotated(net: Net, x: fx.Node, cosine: fx.Node, sine: fx.Node) -> fx.Node:
    first, second = net(aten.slice.Tensor, x, 3, 0, 2), net(aten.slice.Tensor, x, 3, 2, 4)
    turned = net(aten.cat.default, [net(aten.neg.default, second), first], -1)
    return net(aten.add.Tensor, net(aten.mul.Tensor, x, cosine), net(aten.mul.Tensor, turned, sine))


def test_what_is_reported() -> None:
    pruned = residual()
    report = masked_equivalence(pruned.program, pruned.result, pruned.plan)
    assert report.output_error < 1e-14
    assert report.difference_error < 1e-13
    assert report.response > 1e-4


def test_a_weight_that_is_scaled_by_a_millionth() -> None:
    pruned = residual()
    for name in ("p0", "p1", "p2", "p4", "p6"):
        with pytest.raises(ProofError, match="output_0 differs"):
            pruned.check(pruned.spoiled(name, lambda weight: weight * (1 + 1e-6)))


def test_one_wrong_channel() -> None:
    """A row that goes instead of one that stays."""
    pruned = residual()
    whole = walk.tensor(pruned.program, "p4").detach()
    with pytest.raises(ProofError):
        pruned.check(pruned.spoiled("p4", lambda weight: whole[[1, 2, 4]][:, [0, 2, 5]]))


def test_a_residual_tie_that_is_dropped() -> None:
    """The branch keeps other channels than the trunk that it is added to."""
    pruned = residual()
    whole = walk.tensor(pruned.program, "p2").detach()
    with pytest.raises(ProofError):
        pruned.check(pruned.spoiled("p2", lambda weight: whole[[0, 2, 4]][:, [0, 2, 5]]))


def test_two_groups_of_equal_size_swapped() -> None:
    pruned = residual()
    channels = pruned.plan.channels
    swapped = dict(zip(channels, reversed(channels.values()), strict=True))
    assert swapped != channels
    plan = make_plan(analyse(pruned.program), swapped)
    with pytest.raises(ProofError):
        pruned.check(PruneChannels(plan).run(pruned.program).program)


def reversed_order(dim: Dim, indices: Mapping[Axis, Indices]) -> Indices:
    """`kept` with the factors of a product taken innermost first: the fault to be caught."""
    dim = find(dim)
    if isinstance(dim, Axis | Concat):
        return kept_positions(dim, indices)
    result = np.zeros(1, dtype=np.int64)
    for factor in reversed(dim.factors):
        result = (result[:, None] * factor.size + reversed_order(factor, indices)[None, :]).reshape(-1)
    return result


def test_the_order_of_a_product_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads read as widths, in the tensors and in what the plan says about them alike."""
    program = attention()
    names = {group.positions: group.name for group in analyse(program).groups}
    channels = {names[4]: (0, 3)}
    prune(program, channels)
    monkeypatch.setattr(pruning_plan, "kept", reversed_order)
    monkeypatch.setattr(prune_channels, "kept", reversed_order)
    with pytest.raises(ProofError):
        prune(program, channels)


def test_an_attention_scale_that_is_not_pinned() -> None:
    program = attention()
    width = next(group.name for group in analyse(program).groups if group.name == "p0[0]:1")
    pruned = prune(program, {width: (0, 3)})
    spoiled = pruned.result.copy()
    node = next(n for n in spoiled.graph.nodes if n.target is aten.scaled_dot_product_attention.default)
    assert node.kwargs["scale"] == 0.5
    edit.set_argument(node, "scale", None)
    spoiled.module.recompile()
    with pytest.raises(ProofError):
        pruned.check(spoiled)


def test_a_rotary_half_that_is_not_paired() -> None:
    """Queries and keys keep feature 0 of the first half and, of the second, not its partner 2 but 3."""
    program = attention(rotate=True)
    half = next(group for group in analyse(program).groups if any(m.tensor == "b3" for m in group.members))
    assert half.size == 2
    pruned = prune(program, {half.name: (0,)})
    wrong = [head * 4 + place for head in range(4) for place in (0, 3)]
    spoiled = pruned.result.copy()
    for name in ("p0", "p1"):
        edit.set_tensor(spoiled, name, walk.tensor(program, name).detach()[wrong])
    with pytest.raises(ProofError):
        pruned.check(spoiled)


def large_and_deaf(fault: float) -> Pruned:
    """An output of 1e6 that moves by 1e-3 when the input does."""
    net = Net(dynamic=False)
    x = net(aten.tanh.default, net.channels(6))
    y = net(aten.mul.Scalar, net.read(x), 1e-3)
    program = net.program(net(aten.add.Scalar, y, 1e6))
    pruned = prune(program, {"p0[0]": (0, 2, 3)})
    result = pruned.spoiled("p2", lambda weight: weight * (1 + fault))
    return Pruned(program, pruned.plan, result)


def test_a_fault_that_hides_behind_a_large_constant() -> None:
    large_and_deaf(0.0).check()
    with pytest.raises(ProofError, match="response to a change of input"):
        large_and_deaf(0.01).check()


def test_a_network_that_ignores_its_input_is_reported_as_such() -> None:
    net = Net(dynamic=False)
    x = net(aten.tanh.default, net(aten.mul.Scalar, net.channels(6), 0.0))
    x = net(aten.add.Tensor, x, net.parameter(6))
    pruned = prune(net.program(net.read(x)), {"p0[0]": (0, 2, 3)})
    report = masked_equivalence(pruned.program, pruned.result, pruned.plan)
    assert report.response == 0.0
    with pytest.raises(ProofError):
        pruned.check(pruned.spoiled("p3", lambda weight: weight * (1 + 1e-6)))


@pytest.mark.parametrize("blocked", [-1e38, -float("inf")])
def test_a_fault_beside_blocked_logits(blocked: float) -> None:
    """Entries that are one huge constant do not set the scale."""
    net = Net(dynamic=False)
    logits = net.read(net(aten.tanh.default, net.channels(6)))
    mask = net.buffer(torch.tensor([False, True, False]))
    pruned = prune(net.program(net(aten.masked_fill.Scalar, logits, mask, blocked)), {"p0[0]": (0, 2, 3)})
    with pytest.raises(ProofError):
        pruned.check(pruned.spoiled("p2", lambda weight: weight * (1 + 1e-6)))


def test_an_output_of_integers() -> None:
    """Classes are compared exactly."""
    net = Net(dynamic=False)
    classes = net(aten.argmax.default, net.read(net(aten.tanh.default, net.channels(6))), 1)
    pruned = prune(net.program(classes), {"p0[0]": (0, 2, 3)})
    with pytest.raises(ProofError, match="int64"):
        pruned.check(pruned.spoiled("p2", lambda weight: -weight))


def test_an_output_that_is_no_number() -> None:
    net = Net(dynamic=False)
    y = net(aten.log.default, net.read(net(aten.tanh.default, net.channels(6))))
    with pytest.raises(ProofError, match="NaN"):
        prune(net.program(y), {"p0[0]": (0, 2, 3)})


def test_an_output_of_another_shape() -> None:
    pruned = residual()
    with pytest.raises(ProofError, match=r"shape \(2, 2\)"):
        pruned.check(pruned.spoiled("p6", lambda weight: weight[:2]))


def test_every_output_is_compared() -> None:
    net = Net(dynamic=False)
    x = net(aten.tanh.default, net.channels(6))
    pruned = prune(net.program(net.read(x), net.read(x)), {"p0[0]": (0, 2, 3)})
    pruned.check()
    with pytest.raises(ProofError, match="output_1"):
        pruned.check(pruned.spoiled("p3", lambda weight: weight * 1.01))


def test_a_program_in_training_mode_is_proven_in_evaluation() -> None:
    net = Net(dynamic=False)
    x = net(aten.dropout.default, net(aten.tanh.default, net.channels(6)), 0.5, True)
    pruned = prune(net.program(net.read(x)).train(), {"p0[0]": (0, 2, 3)})
    assert pruned.program.training
    assert pruned.result.training


def test_other_inputs_are_of_the_same_kind() -> None:
    ids = torch.tensor([[5, 0], [7, 1], [9, 0]])
    mask = torch.tensor([True, False, False])
    noise, rows, flags, scalar, empty = next(
        variations([torch.ones(3, 2), ids, mask, torch.tensor(4), torch.zeros(0, 2)], seed=0)
    )
    assert noise.dtype == torch.float32
    assert (noise != 1).any()
    assert rows.tolist() == [[9, 0], [5, 0], [7, 1]]
    assert flags.tolist() == [False, True, False]
    assert scalar.item() == 4
    assert empty.shape == (0, 2)


def test_a_row_of_tokens_that_is_repeated_gives_other_rows() -> None:
    """Once vacuous: rows of a batch that repeats one row changed places, and nothing had changed."""
    ids = torch.tensor([[5, 9, 7, 2]]).repeat(2, 1)
    mask = torch.tensor([[1, 1, 1, 0]]).repeat(2, 1)
    shuffled, redrawn, flipped = variations([ids, mask], seed=0)
    assert not torch.equal(shuffled[0], ids)
    assert shuffled[0].sort(-1).values.tolist() == ids.sort(-1).values.tolist()
    assert set(redrawn[0].unique().tolist()) <= {2, 5, 7, 9}
    assert torch.equal(shuffled[1], mask), "a mask goes with its row; holes in it are the last resort"
    assert torch.equal(redrawn[1], mask)
    assert not torch.equal(flipped[1], mask)
    assert [[varied.tolist() for varied in inputs] for inputs in variations([ids, mask], seed=0)] == [
        [varied.tolist() for varied in inputs] for inputs in (shuffled, redrawn, flipped)
    ]
    (alone,) = variations([torch.zeros(1, 9, dtype=torch.int64)], seed=0)
    assert set(alone[0].unique().tolist()) == {0, 1}


class _Tokens(nn.Module):
    """An embedding, averaged over tokens or not, between two linears."""

    def __init__(self, order: bool, weight: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.order, self.weight = nn.Embedding(12, 16), order, weight
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) * self.weight
        return self.second(torch.tanh(self.first(x if self.order else x.mean(1))))


@pytest.mark.parametrize(
    ("order", "weight", "moves"), [(True, 1.0, True), (False, 1.0, True), (False, 0.0, False)]
)
def test_outputs_move_for_one_row_of_tokens(order: bool, weight: float, moves: bool) -> None:
    """Shuffled tokens move them, drawn ones where their order does not count; some models ignore them."""
    program = capture(_Tokens(order, weight).eval(), torch.tensor([[3, 8, 1, 5]]))
    pruned = prune(program, {"first.weight[0]": tuple(range(0, 32, 2))})
    response = masked_equivalence(program, pruned.result, pruned.plan).response
    assert (response > 1e-3) if moves else (response == 0.0)


def test_inputs_that_the_model_refuses_or_answers_with_nan_are_not_taken() -> None:
    """The one token that the table has cannot be varied; the logarithm of noise is NaN."""

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first, self.second = nn.Embedding(1, 4), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
            return self.second(self.first(self.table(ids))) + torch.log(scale)

    for ids, scale in (
        (torch.zeros(2, 3), torch.ones(2, 3, 1)),
        (torch.zeros(2, 3), torch.full((2, 3, 1), 1e-9)),
    ):
        program = capture(Narrow().eval(), (ids.long(), scale))
        pruned = prune(program, {"first.weight[0]": (0, 3, 5)})
        masked_equivalence(program, pruned.result, pruned.plan)


class Allowed(nn.Module):
    """Scores of what the caller allows; the rest is minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x))).masked_fill(~keep, float("-inf"))


def test_infinities_that_follow_the_input_are_no_fault() -> None:
    """An entry that is infinite for one input may be a number for another."""
    torch.manual_seed(0)
    example = (torch.randn(4, 8), torch.rand(4, 6) > 0.3)
    result = fxcompress.optimize(Allowed().eval(), example, prune=fxcompress.Prune(0.5, block=1))
    assert result.report.ratio("macs") < 0.6


def test_an_infinity_where_the_reference_has_a_number_is_one() -> None:
    torch.manual_seed(0)
    example = (torch.randn(4, 8), torch.rand(4, 6) > 0.3)
    program = capture(Allowed().eval(), example).to(torch.float64)
    broken = program.copy()
    edit.set_tensor(broken, "head.bias", torch.full((6,), float("-inf"), dtype=torch.float64))
    with pytest.raises(ProofError, match="infinite or NaN where the reference is not"):
        equivalence(Executor(program), broken, 0)
