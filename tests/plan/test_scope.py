"""What is ranked together: scopes as rescaled scores, kinds of groups from the operators that read them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.errors import InputError
from fxcompress.numerics.saliency import Saliency
from fxcompress.plan.explicit import explicit_shares
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.scope import in_scope, kinds_of
from tests.ops.building import Net, aten


def unequal() -> Analysis:
    """Two pairs of blocks, 32 and 16 wide; in each pair the second block's weights are a hundred times
    larger.
    """
    net = Net(dynamic=False)
    x = net.input(8)
    for width in (32, 16):
        for factor in (1.0, 100.0):
            up = net.parameter(value=factor * torch.rand(width, 8, generator=net.generator))
            down = net.parameter(value=factor * torch.rand(8, width, generator=net.generator))
            y = net(aten.linear.default, net(aten.tanh.default, net(aten.linear.default, x, up)), down)
            x = net(aten.add.Tensor, x, y)
    return analyse(net.program(x))


def shares(analysis: Analysis, scope: str) -> dict[str, float]:
    """The share of each group that goes, by magnitude and not relative to the group."""
    options = Prune(0.5, saliency=Saliency("l2", normalize="none"), scope=scope, block=1)
    plan = plan_pruning(analysis, options, 1)
    sizes = {group.name: group.size for group in analysis.groups}
    return {name: 1 - len(plan.channels.get(name, range(size))) / size for name, size in sizes.items()}


def test_one_ranking_for_all_takes_the_small_weights() -> None:
    small, large, *_ = shares(unequal(), "global").values()
    assert small > 0.8
    assert large < 0.2


def test_each_group_alone_loses_the_same_share() -> None:
    assert list(shares(unequal(), "group").values()) == pytest.approx([0.5] * 4, abs=1 / 16)


def test_each_kind_loses_the_same_share_and_ranks_its_groups_together() -> None:
    first, second, third, fourth = shares(unequal(), "kind").values()
    assert (first + second) / 2 == pytest.approx(0.5, abs=1 / 16)
    assert (third + fourth) / 2 == pytest.approx(0.5, abs=1 / 16)
    assert first > 0.8
    assert third > 0.8
    assert second < 0.2
    assert fourth < 0.2


def test_kinds_are_told_by_operators_and_sizes() -> None:
    analysis = unequal()
    first, second, third, fourth = kinds_of(analysis).values()
    assert first == second != third == fourth


def test_the_order_of_a_parameter_s_dimensions_is_part_of_its_kind() -> None:
    """A linear's rows are its columns' opposite, a product's columns are not a linear's rows."""
    net = Net(dynamic=False)
    x = net(aten.tanh.default, net(aten.linear.default, net.input(3), net.parameter(6, 3)))
    y = net(aten.tanh.default, net(aten.mm.default, x, net.parameter(6, 6)))
    z = net(aten.tanh.default, net(aten.linear.default, y, net.parameter(6, 6)))
    kinds = kinds_of(analyse(net.program(net(aten.linear.default, z, net.parameter(3, 6)))))
    assert len(set(kinds.values())) == 3


def test_ranks_are_shares_and_ties_keep_their_order() -> None:
    analysis = unequal()
    names = [group.name for group in analysis.groups][:2]
    scores = {names[0]: np.array([3.0, 1.0, 1.0, 9.0]), names[1]: np.array([2.0, 2.0])}
    ranked = in_scope(analysis, scores, "group")
    assert ranked[names[0]].tolist() == [0.625, 0.125, 0.375, 0.875]
    assert ranked[names[1]].tolist() == [0.25, 0.75]
    pooled = in_scope(analysis, scores, "kind")
    assert (pooled[names[0]] * 12).tolist() == pytest.approx([9, 1, 3, 11])
    assert in_scope(analysis, scores, "global") == scores


def test_shares_by_hand() -> None:
    analysis = unequal()
    first, second, third, fourth = (group.name for group in analysis.groups)
    options = Prune(ratios={"p0": 0.25, "p[23]": 0.5, third: 0.0}, block=1)
    plan = plan_pruning(analysis, options, 1)
    assert {name: len(stay) for name, stay in plan.channels.items()} == {first: 24, second: 16}
    assert fourth not in plan.channels


def test_shares_by_hand_that_contradict_each_other_are_refused() -> None:
    """The rows of `p0` are the columns of `p1`: one group cannot lose two shares."""
    analysis = unequal()
    with pytest.raises(InputError, match=r"both 0\.25 and 0\.5 of the group 'p0\[0\]'"):
        explicit_shares(analysis, {"p0": 0.25, "p1": 0.5})
    asked = explicit_shares(analysis, {"p0": 0.25, "p1": 0.25})
    assert {name: item.share for name, item in asked.items()} == {"p0[0]": 0.25}
    with pytest.raises(InputError, match="matches no parameter"):
        explicit_shares(analysis, {"layer9.*": 0.25})


def test_least_width_and_least_share() -> None:
    analysis = unequal()
    plan = plan_pruning(analysis, Prune(0.5, min_width=10, block=1), 1)
    assert min(len(stay) for stay in plan.channels.values()) >= 10
    assert min(len(stay) for stay in plan_pruning(analysis, Prune(0.5, block=1), 1).channels.values()) < 10
    plan = plan_pruning(analysis, Prune(0.3, min_ratio=0.25, block=1), 1)
    assert all(len(plan.channels[group.name]) <= 0.75 * group.size for group in analysis.groups)
