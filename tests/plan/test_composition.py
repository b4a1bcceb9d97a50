"""Plans one after the other are one plan of the first program; limits by group are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.errors import BudgetError, ProofError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.composition import Composition
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.pruning_plan import make_plan
from tests.recovery.models import example, net


class Square(nn.Module):
    """A product of two factors of one size: only positions tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).view(-1, 4, 4).transpose(1, 2).relu()
        return self.down(y.transpose(1, 2).reshape(-1, 16))


@pytest.fixture
def square() -> Program:
    torch.manual_seed(0)
    return capture(Square().eval(), torch.randn(2, 5))


def step(program: Program, composition: Composition, channels: dict[str, tuple[int, ...]]):
    analysis = analyse(program)
    plan = make_plan(analysis, channels)
    return PruneChannels(plan).run(program).program, composition.after(analysis, plan)


def named(analysis: Analysis, composition: Composition) -> dict[str, str | None]:
    found = {group.name: composition.origin(group) for group in analysis.groups}
    return {name: None if group is None else group.name for name, group in found.items()}


def test_indices_are_mapped_back() -> None:
    program = capture(net(), example())
    base = analyse(program)
    name = "one.0.weight[0]"
    first, composition = step(program, Composition.start(base), {name: tuple(range(1, 24, 2))})
    second, composition = step(first, composition, {name: (0, 5, 11), "stem.0.weight[0]": (2, 3)})
    plan = composition.plan({"x": "why"}, {name: 8, "gone": 4})
    assert plan.channels == {name: (1, 11, 23), "stem.0.weight[0]": (2, 3)}
    assert plan.protected == {"x": "why"}
    assert plan.relaxed == {name: 8}
    assert str(PruneChannels(plan).run(program).program) == str(second)


def test_nothing_removed_is_an_empty_plan() -> None:
    base = analyse(capture(net(), example()))
    plan = Composition.start(base).plan({}, {})
    assert plan.channels == {}
    assert plan.after == plan.before


def test_factors_of_one_size_keep_their_origins(square: Program) -> None:
    base = analyse(square)
    outer, inner = (f"up.weight[0]:{place}" for place in (0, 1))
    start = Composition.start(base)
    assert named(base, start) == {outer: outer, inner: inner}
    for channels in ({outer: (1, 3)}, {inner: (0, 2)}, {outer: (0, 3), inner: (1, 2)}):
        pruned, composition = step(square, start, channels)
        assert named(analyse(pruned), composition) == {outer: outer, inner: inner}
        again, composition = step(pruned, composition, {outer: (0,), inner: (0, 1)})
        plan = composition.plan({}, {})
        assert plan.channels.get(outer) == (channels.get(outer, (0,))[0],)
        assert plan.channels[inner] == channels.get(inner, (0, 1))[:2]
        assert str(PruneChannels(plan).run(square).program) == str(again)
        assert set(named(analyse(again), composition).values()) == {inner}


def test_what_is_no_choice_of_indices_is_refused(square: Program) -> None:
    """A position more, or one tensor cut otherwise than those it is coupled with."""
    base = analyse(square)
    start = Composition.start(base)
    _, composition = step(square, start, {"up.weight[0]:0": (1, 3)})
    for name, places in (
        ("up.weight", (np.array([4, 5, 6, 12, 13, 14]), np.arange(5))),
        ("down.weight", (np.arange(3), np.arange(16))),
        ("up.bias", (np.arange(8),)),
    ):
        wrong = replace(composition, places={**composition.places, name: places})
        with pytest.raises(ProofError, match="cannot be stated"):
            wrong.plan({}, {})


def test_limits_by_group_replace_those_of_the_options() -> None:
    analysis = analyse(capture(net(), example()))
    one, stem = "one.0.weight[0]", "stem.0.weight[0]"
    options = Prune(0.5, block=1, max_ratio=0.9)
    free = plan_pruning(analysis, options, 1)
    assert len(free.channels[one]) < 22
    held = plan_pruning(analysis, options, 1, within={one: (22, 24)})
    assert len(held.channels.get(one, range(24))) >= 22
    assert held.after.macs <= 0.5 * held.before.macs
    fixed = plan_pruning(analysis, options, 1, within={one: (20, 20), stem: (2, 16)})
    assert len(fixed.channels[one]) == 20
    with pytest.raises(BudgetError):
        plan_pruning(analysis, options, 1, within={one: (24, 24), stem: (16, 16)})
