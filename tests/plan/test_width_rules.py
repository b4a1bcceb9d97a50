"""Which widths a group may take: alignment of tensors, floors, explicit shares, scopes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.analysis.groups import Analysis, Group, Member, analyse
from fxcompress.axes.expression import Axis, product
from fxcompress.errors import BudgetError, InputError
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.budget import Candidate
from fxcompress.plan.explicit import explicit_shares
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import narrowest_plan, plan_pruning
from fxcompress.plan.width_rules import candidate, fixed_width, width_step


def group_of(size: int, *positions: int, statistics: tuple[str, ...] = ()) -> Group:
    """A group whose index stands for so many positions in each of several weights."""
    axis = Axis(size, "g", statistics=list(statistics))
    members = tuple(
        Member(f"w{place}", 0, product(axis, Axis(count)) if count > 1 else axis)
        for place, count in enumerate(positions)
    )
    return Group("w0[0]", axis, members, min(positions))


@pytest.mark.parametrize(
    ("positions", "block", "step"),
    [
        ((1,), 16, 16),
        ((64,), 16, 1),
        ((4,), 16, 4),
        ((6,), 16, 8),
        ((4, 6), 16, 8),
        ((1, 64), 16, 16),
        ((3, 4), 12, 12),
        ((3,), 1, 1),
    ],
)
def test_alignment_is_wanted_of_the_tensors(positions: tuple[int, ...], block: int, step: int) -> None:
    """Several counts are combined by their least common multiple; a maximum would miss one (TP)."""
    group = group_of(64, *positions)
    weights = frozenset(member.tensor for member in group.members)
    found = width_step(group, block, weights)
    assert found == step
    assert all(found * count % block == 0 for count in positions)


def test_tensors_that_no_kernel_multiplies_with_do_not_coarsen_the_step() -> None:
    """A table of biases per head has one position per head; the projections have 64."""
    group = group_of(12, 64, 1)
    assert width_step(group, 16, frozenset({"w0"})) == 1


@given(
    st.integers(1, 300), st.integers(1, 32), st.floats(0.01, 0.99), st.floats(0.0, 0.5), st.integers(1, 400)
)
def test_floors_and_tops_are_in_order(size: int, step: int, gone: float, must: float, width: int) -> None:
    options = Prune(max_ratio=gone, min_ratio=min(must, gone), min_width=width)
    item = candidate(group_of(size, 1), np.arange(float(size)), step, options)
    assert 1 <= item.least <= item.top <= item.size
    assert item.least >= min(size, width)
    assert item.floor(1) == item.least
    assert item.least <= item.floor(step) <= item.top


def test_a_normalised_axis_keeps_two_positions() -> None:
    group = group_of(8, 1, statistics=("layer_norm",))
    assert candidate(group, np.ones(8), 1, Prune(max_ratio=0.99)).least == 2


@given(st.integers(1, 300), st.sampled_from((1, 4, 8, 16, 32)), st.floats(0.0, 0.999), st.booleans())
def test_an_explicit_share_is_met_to_the_nearest_step(
    size: int, step: int, share: float, statistics: bool
) -> None:
    """Never zero, and never silently nothing: a 16-channel stage at 60 % in steps of 8 loses 8, not none."""
    item = Candidate("g", np.ones(size), step, 1)
    width, rung = fixed_width(share, item, statistics)
    assert min(size, 1 + statistics) <= width <= size
    assert width == size or width % rung == 0 or width == min(size, 1 + statistics)
    assert abs(width - size * (1 - share)) <= max(0.1 * size, 1 + statistics)
    assert rung <= step


def test_sixteen_channels_at_sixty_percent_are_pruned() -> None:
    assert fixed_width(0.6, Candidate("g", np.ones(16), 8, 1), False) == (8, 8)
    assert fixed_width(0.0, Candidate("g", np.ones(10), 8, 1), False) == (10, 8)


class Chain(nn.Module):
    """Four linear layers with activations; the two in the middle are of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 64)
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.last = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.last(x)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    torch.manual_seed(0)
    model = Chain()
    with torch.no_grad():
        model.layers[0].weight *= 100
    return analyse(capture(model.eval(), torch.randn(2, 8)))


def test_explicit_ratios_alone_leave_everything_else_whole(analysis: Analysis) -> None:
    plan = plan_pruning(analysis, Prune(ratios={"layers.0.weight[0]": 0.25, "first.weight": 0.5}), 16)
    assert {name: len(stay) for name, stay in plan.channels.items()} == {
        "first.weight[0]": 32,
        "layers.0.weight[0]": 48,
    }


def test_explicit_ratios_are_fixed_before_a_budget_is_met(analysis: Analysis) -> None:
    plan = plan_pruning(analysis, Prune(0.5, ratios={"layers.1.weight[0]": 0.0, "first.weight[0]": 0.25}), 8)
    assert "layers.1.weight[0]" not in plan.channels
    assert len(plan.channels["first.weight[0]"]) == 48
    assert 0.49 * plan.before.macs <= plan.after.macs <= 0.5 * plan.before.macs


def test_a_ratio_wins_over_protection(analysis: Analysis) -> None:
    plan = plan_pruning(analysis, Prune(ratios={"first.weight": 0.5}, protect=("first.*",)), 16)
    assert len(plan.channels["first.weight[0]"]) == 32


@pytest.mark.parametrize("protect", ["first.*", nn.Linear, lambda group: group.name.startswith("first")])
def test_a_share_of_everything_yields_to_protection(analysis: Analysis, protect: Any) -> None:
    """`*` names nothing; what is protected does."""
    plan = plan_pruning(analysis, Prune(ratios={"*": 0.5, "layers.0.weight[0]": 0.25}, protect=(protect,)), 1)
    assert "first.weight[0]" not in plan.channels
    assert "protected by" in plan.protected["first.weight[0]"]
    assert len(plan.channels["layers.0.weight[0]"]) == 48


@pytest.mark.parametrize("options", [{"max_ratio": 0.2}, {"min_width": 50}])
def test_a_share_beyond_what_every_group_keeps_is_refused(
    analysis: Analysis, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"remove 50\.0% of the group 'first.weight\[0\]'"):
        plan_pruning(analysis, Prune(ratios={"first.weight": 0.5}, **options), 1)


def test_a_budget_of_which_nothing_can_go_says_why(analysis: Analysis) -> None:
    with pytest.raises(BudgetError) as raised:
        plan_pruning(analysis, Prune(0.5, min_width=100), 1)
    assert "lower min_width" in str(raised.value.hint)
    assert "0.000" not in str(raised.value.hint)


def test_a_predicate_that_fails_is_named_with_the_group(analysis: Analysis) -> None:
    def broken(group: object) -> bool:
        raise KeyError("none")

    with pytest.raises(InputError, match=r"broken failed on the group 'first.weight\[0\]': KeyError"):
        plan_pruning(analysis, Prune(0.5, protect=(broken,)), 1)


def test_a_pattern_of_ratios_must_match(analysis: Analysis) -> None:
    with pytest.raises(InputError, match=r"'nothing\.\*' of ratios matches no parameter"):
        explicit_shares(analysis, {"nothing.*": 0.5})


def test_the_group_scope_takes_the_same_share_of_each(analysis: Analysis) -> None:
    plan = plan_pruning(analysis, Prune(0.5, scope="group"), 1)
    widths = [len(stay) for stay in plan.channels.values()]
    assert len(widths) == 3
    assert max(widths) - min(widths) <= 2


def test_the_narrowest_plan_is_what_no_budget_goes_below(analysis: Analysis) -> None:
    least = narrowest_plan(analysis, Prune(max_ratio=0.75), 16)
    assert {len(stay) for stay in least.channels.values()} == {16}
    share = least.after.macs / least.before.macs
    plan = plan_pruning(analysis, Prune(1 - math.nextafter(share, 1), max_ratio=0.75), 16)
    assert plan.after.macs == least.after.macs


def test_a_smallest_share_goes_of_every_group(analysis: Analysis) -> None:
    plan = plan_pruning(analysis, Prune(0.3, min_ratio=0.2), 1)
    assert all(len(plan.channels[group.name]) <= 0.8 * group.size for group in analysis.groups)


def test_a_budget_over_fixed_widths_alone_is_checked(analysis: Analysis) -> None:
    everything = {"first.weight": 0.5, "layers.*.weight": 0.5}
    plan = plan_pruning(analysis, Prune(0.4, ratios=everything), 16)
    assert {len(stay) for stay in plan.channels.values()} == {32}
    with pytest.raises(BudgetError, match="asks for 10.0% of the MACs"):
        plan_pruning(analysis, Prune(0.9, ratios=everything), 16)


class Stage(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width)
        self.mix = nn.utils.parametrizations.weight_norm(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return x + torch.relu(self.mix(x))


@pytest.fixture(scope="module")
def stages() -> Analysis:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), Stage(16, 32), Stage(32, 48), nn.Conv2d(48, 4, 1)).eval()
    return analyse(capture(model, torch.randn(2, 3, 4, 4)))


def test_a_group_belongs_to_those_who_make_it(stages: Analysis) -> None:
    """Adjacent stages may have shares of their own: the second one only reads what the first one makes."""
    plan = plan_pruning(stages, Prune(ratios={"1.*": 0.25, "2.*": 0.5}), 8)
    assert {name: len(stay) for name, stay in plan.channels.items()} == {
        "1.conv.weight[0]": 24,
        "2.conv.weight[0]": 24,
    }


def test_who_makes_nothing_means_what_it_reads(stages: Analysis) -> None:
    assert list(explicit_shares(stages, {"3.*": 0.5})) == ["2.conv.weight[0]"]
    with pytest.raises(InputError, match=r"both 0\.25 and 0\.5 of the group '2\.conv\.weight\[0\]'"):
        explicit_shares(stages, {"2.conv.*": 0.25, "3.*": 0.5})
    with pytest.raises(InputError, match=r"both 0\.25 and 0\.5"):
        explicit_shares(stages, {"2.conv.*": 0.25, "2.mix.*": 0.5})
    named = explicit_shares(stages, {"2.*": 0.25, "2.conv.weight[0]": 0.5})
    assert [item.share for item in named.values()] == [0.5]


def test_what_is_protected_keeps_what_it_reads(stages: Analysis) -> None:
    plan = plan_pruning(stages, Prune(0.05, protect=("2.*",)), 8)
    assert set(plan.channels) == {"0.weight[0]"}


class Attention(nn.Module):
    """Four heads of sixteen, from separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 64) for _ in range(3))
        self.out = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (4, 16)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def attention() -> Analysis:
    return analyse(capture(Attention().eval(), torch.randn(2, 5, 8)))


@pytest.mark.parametrize(
    ("pattern", "factors", "heads", "width"),
    [
        ("query.*", "outer", 2, 16),
        ("query.*", "inner", 4, 8),
        ("query.*", "largest", 4, 8),
        ("query.*", "both", 2, 8),
        ("query.weight[0]", "outer", 2, 16),
        ("query.weight[0]:0", "inner", 2, 16),
        ("query.weight[0]:1", "outer", 4, 8),
    ],
)
def test_a_ratio_is_of_the_factor_that_the_policy_chooses(
    attention: Analysis, pattern: str, factors: str, heads: int, width: int
) -> None:
    """Half of an attention is half of its heads or half of their width, not a quarter of it."""
    plan = plan_pruning(attention, Prune(ratios={pattern: 0.5}, factors=factors, block=1), 1)
    pruned = PruneChannels(plan).run(attention.program).program
    assert walk.tensor(pruned, "query.weight").shape == (heads * width, 8)
    assert walk.tensor(pruned, "value.weight").shape == (heads * 16, 8)
    assert len(plan.channels.get("query.weight[0]:0", range(4))) == heads
    assert plan.after.macs < plan.before.macs


def test_the_rival_of_a_factor_that_was_asked_for_is_not_ranked(attention: Analysis) -> None:
    ratios = {"query.weight[0]:0": 0.5}
    plan = plan_pruning(attention, Prune(0.5, ratios=ratios, factors="largest", block=1), 1)
    assert set(plan.channels) == {"query.weight[0]:0"}
