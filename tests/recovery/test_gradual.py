"""Pruning in rounds: budgets count from the original, and all rounds are one plan of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.cost import cost
from fxcompress.analysis.evidence import Evidence, gather
from fxcompress.analysis.groups import analyse
from fxcompress.errors import BudgetError, InputError, NotSupported
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.module import named_tensors
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import Prune
from fxcompress.plan.schedule import Schedule
from fxcompress.proof.masked import masked_equivalence
from fxcompress.recovery import gradual
from fxcompress.recovery.gradual import Gradual, Round, prune_gradually
from tests.architectures.programs import captured
from tests.passes.models import Apply
from tests.recovery.models import example, net, train


@cache
def small(width: int = 16, inner: int = 24) -> Program:
    """The captured net; shared, for rounds copy what they are given."""
    return capture(net(width, inner), example())


def assert_same_program(left: Program, right: Program) -> None:
    """Equal listings, and equal tensors under equal names."""
    assert str(left).splitlines() == str(right).splitlines()
    tensors = dict(named_tensors(right.module))
    assert set(tensors) == {name for name, _ in named_tensors(left.module)}
    for name, tensor in named_tensors(left.module):
        assert torch.equal(tensor, tensors[name]), name


def replayed(program: Program, result: Gradual) -> Program:
    return PackLinears().run(PruneChannels(result.plan).run(program).program).program


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_rounds_follow_the_schedule_and_end_at_the_budget(kind: str) -> None:
    """Every round stays below its bound, and where it removes anything within a percent of the original."""
    schedule = Schedule(kind, 2)
    result = prune_gradually(small(24, 160), prune=Prune(0.5, block=1), schedule=schedule)
    wanted = [1 - schedule.removed(step, 0.5) for step in (1, 2)]
    assert all(limit - 0.01 <= share <= limit for share, limit in zip(result.history, wanted, strict=True))
    whole = cost(small(24, 160))
    assert cost(result.program).macs / whole.macs == pytest.approx(result.history[-1])
    assert result.plan.before == whole
    assert result.plan.after == cost(result.program)


def test_all_rounds_are_one_plan_of_the_original() -> None:
    """Without training in between, the composed plan replayed in one shot is the same program."""
    model = net()
    program = capture(model, example())
    result = prune_gradually(model, example(), prune=Prune(0.7, block=1), schedule=Schedule("linear", 3))
    assert sum(item.plan is not None and bool(item.plan.channels) for item in result.rounds) == 3
    assert_same_program(replayed(program, result), result.program)
    masked_equivalence(program, result.program, result.plan)
    for name, dims in result.plan.kept.items():
        tensor = walk.tensor(program, name)
        for dim, stay in dims.items():
            tensor = tensor.index_select(dim, torch.tensor(stay))
        assert torch.equal(tensor, walk.tensor(result.program, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf_llama", "vit_packed", "resnext"])
def test_heads_and_groups_compose(name: str) -> None:
    program = captured(name)
    options = Prune(0.5, block=1, factors="both")
    result = prune_gradually(program, prune=options, schedule=Schedule("exponential", 2))
    well_formed(result.program)
    assert 0.48 <= result.history[-1] <= 0.5
    assert_same_program(replayed(program, result), result.program)


class Heads(nn.Module):
    """Attention over four heads of two, with one packed projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 3 * 4 * 2), nn.Linear(4 * 2, 6)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 4, 2).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, 4 * 2))


def test_heads_that_shrink_to_one_keep_their_place_in_the_plan() -> None:
    """A product with one head left is written without its heads: its groups have other names then."""
    torch.manual_seed(0)
    program = capture(Heads().eval(), torch.randn(2, 3, 6))
    options = Prune(0.5, block=1, factors="both", max_ratio=0.8)
    heads = [group for group in analyse(program).groups if group.size == 4]
    assert heads
    forced = prune_gradually(
        program,
        prune=Prune(ratios={"qkv.weight": 0.75}, factors="outer", block=1),
        schedule=Schedule("linear", 2),
    )
    for result in (forced, prune_gradually(program, prune=options, schedule=Schedule("linear", 3))):
        assert_same_program(replayed(program, result), result.program)
        assert set(dict(result.program.module.named_parameters())) == set(
            dict(program.module.named_parameters())
        )
    assert 1 in {len(stay) for stay in forced.plan.channels.values()}


def test_training_in_between_moves_what_is_chosen() -> None:
    """The first round chooses as without training, the later ones by the weights as they are then."""
    seen: list[tuple[bool, int]] = []
    losses: list[list[float]] = []

    def hook(program: Program, done: Round) -> None:
        seen.append((program.training, done.number))
        losses.append(train(program, 12))

    torch.manual_seed(0)
    result = prune_gradually(small(), prune=Prune(0.6, block=1), schedule=Schedule("cubic", 3), train=hook)
    untrained = prune_gradually(small(), prune=Prune(0.6, block=1), schedule=Schedule("cubic", 3))
    same = [one.plan == other.plan for one, other in zip(result.rounds, untrained.rounds, strict=True)]
    assert same == [True, False, False]
    assert result.plan.channels != untrained.plan.channels
    assert seen == [(True, 1), (True, 2), (True, 3)]
    assert losses[0][-1] < losses[0][0]
    assert losses[-1][-1] < 0.5 * losses[0][0]
    assert not result.program.training
    assert 0.37 <= result.history[-1] <= 0.4
    well_formed(result.program)
    assert {name: tuple(t.shape) for name, t in named_tensors(result.program.module)} == {
        name: tuple(t.shape) for name, t in named_tensors(replayed(small(), result).module)
    }


def test_the_model_given_stays_as_it_is() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = capture(model, example())
    for given in (model, program):
        inputs = example() if given is model else None
        prune_gradually(
            given, inputs, schedule=Schedule("linear", 2), train=lambda p, r: train(p, 2) and None
        )
    for state in (model.state_dict(), dict(named_tensors(program.module))):
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    assert not program.training


def test_the_largest_share_of_a_group_counts_from_the_original() -> None:
    """Each round alone may take `max_ratio`; together they may not take more."""
    options = Prune(0.7, block=1, max_ratio=0.5)
    result = prune_gradually(small(), prune=options, schedule=Schedule("linear", 3))
    for name, stay in result.plan.channels.items():
        assert len(stay) >= 0.5 * result.plan.sizes[name]
    assert any(len(stay) == 0.5 * result.plan.sizes[name] for name, stay in result.plan.channels.items())


def test_explicit_shares_count_from_the_original() -> None:
    options = Prune(ratios={"one.0.weight": 0.5}, block=1)
    result = prune_gradually(small(), prune=options, schedule=Schedule("linear", 3))
    widths = [len(item.plan.channels["one.0.weight[0]"]) for item in result.rounds if item.plan]
    assert widths == [20, 16, 12]
    assert set(result.plan.channels) == {"one.0.weight[0]"}  # what it reads belongs to the stem


def test_the_smallest_share_counts_from_the_original() -> None:
    options = Prune(0.3, block=1, min_ratio=0.25)
    result = prune_gradually(small(), prune=options, schedule=Schedule("linear", 3))
    sizes = result.plan.sizes
    assert all(len(stay) <= 0.75 * sizes[name] for name, stay in result.plan.channels.items())
    assert result.history[-1] >= 0.5


def test_alignment_is_judged_at_the_end() -> None:
    """Widths on the way may be anything; only those off the block in the end are called relaxed."""
    options = Prune(0.5, block=8)
    result = prune_gradually(small(32, 64), prune=options, schedule=Schedule("linear", 3))
    relaxed = {name for name, stay in result.plan.channels.items() if len(stay) % 8}
    assert set(result.plan.relaxed) == relaxed
    assert all(len(result.plan.channels[name]) % step == 0 for name, step in result.plan.relaxed.items())
    loose = prune_gradually(small(), prune=Prune(0.5, block=1), schedule=Schedule("linear", 2))
    assert loose.plan.relaxed == {}


def test_several_bounds() -> None:
    options = Prune(budget=Budget(macs="70%", params="50%"), block=1)
    result = prune_gradually(small(), prune=options, schedule=Schedule("cubic", 3))
    whole = cost(small())
    assert result.rounds[-1].cost.params <= 0.5 * whole.params
    assert result.rounds[-1].cost.macs <= 0.7 * whole.macs


def test_protection_is_that_of_the_original() -> None:
    options = Prune(0.3, block=1, protect=("stem.0.*",))
    result = prune_gradually(small(), prune=options, schedule=Schedule("linear", 3))
    assert set(result.plan.channels) == {"one.0.weight[0]"}
    assert "stem.0.weight[0]" in result.plan.protected


def test_one_shot_prunes_once_and_trains_every_round() -> None:
    seen: list[bool] = []
    result = prune_gradually(
        small(),
        prune=Prune(0.5, block=1),
        schedule=Schedule("one-shot", 3),
        train=lambda program, done: seen.append(done.plan is not None),
    )
    assert seen == [True, False, False]
    assert result.rounds[1].proof is None
    assert result.history[0] == result.history[2]


def test_saliency_on_data_is_gathered_anew_and_layers_are_compensated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once for what may go at all, and in every round on the program as it is then."""
    gathered: list[float] = []

    def counted(program: Program, *args: Any) -> Evidence:
        gathered.append(cost(program).macs)
        return gather(program, *args)

    monkeypatch.setattr(gradual, "gather", counted)
    batches = [torch.randn(16, 1, 6, 6) for _ in range(2)]
    options = Prune(0.5, block=1, saliency="activation")
    result = prune_gradually(small(), prune=options, schedule=Schedule("linear", 2), calibration=batches)
    assert gathered == [cost(small()).macs, cost(small()).macs, result.rounds[0].cost.macs]
    assert gathered[2] < gathered[1]
    assert 0.45 <= result.history[-1] <= 0.5
    assert any(line.startswith("compensate") for line in result.program.history)


def test_refusals() -> None:
    with pytest.raises(NotSupported, match="milliseconds"):
        prune_gradually(small(), prune=Prune(budget=Budget(ms=1.0)))
    with pytest.raises(InputError, match="calibration"):
        prune_gradually(small(), prune=Prune(saliency="activation"))
    with pytest.raises(InputError, match="only once"):
        prune_gradually(small(), calibration=iter([example()]))
    with pytest.raises(InputError, match="training mode"):
        prune_gradually(small().copy().train())
    with pytest.raises(BudgetError):
        prune_gradually(small(), prune=Prune(0.95, max_ratio=0.5))
    with pytest.raises(InputError, match="no prunable group"):
        prune_gradually(nn.Linear(3, 2).eval(), torch.randn(2, 3))


def test_a_model_that_draws_is_refused() -> None:
    """Two runs of it differ: nothing about it could be proven."""
    noisy = Apply(lambda m, x: m.l(x) + m.l(torch.rand_like(x)), l=nn.Linear(4, 4)).eval()
    x = torch.randn(2, 4)
    with pytest.raises(NotSupported, match="draws random numbers"):
        prune_gradually(noisy, x)


def test_a_training_that_fails_is_named_with_its_round() -> None:
    def broken(program: Program, done: Round) -> None:
        if done.number == 2:
            raise RuntimeError("out of memory")

    options = Prune(0.5, block=1)
    with pytest.raises(InputError, match="train failed in round 2 of 2: RuntimeError: out of memory") as info:
        prune_gradually(small(), prune=options, schedule=Schedule("linear", 2), train=broken)
    assert isinstance(info.value.__cause__, RuntimeError)
