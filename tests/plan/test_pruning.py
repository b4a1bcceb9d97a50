"""Plans: what is protected, what a plan says, and that it only fits the program it was made for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.analysis.cost import cost
from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.errors import BudgetError, InputError
from fxcompress.graph.program import Program
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.pruning_plan import PruningPlan, make_plan
from tests.ops.building import Net, aten


def chain(*widths: int, seed: int = 0) -> Program:
    """Linear layers with a bias and a tanh behind each: 3 inputs, these widths, 3 outputs."""
    net = Net(dynamic=False, seed=seed)
    x, last = net.input(3), 3
    for width in widths:
        x = net(aten.linear.default, x, net.parameter(width, last), net.parameter(width))
        x, last = net(aten.tanh.default, x), width
    return net.program(net(aten.linear.default, x, net.parameter(3, last)))


@cache
def analysed() -> Analysis:
    return analyse(chain(64, 48, 32))


def attention(heads: int, width: int, ids: bool = False) -> Program:
    """One attention layer with packed projections, on features or on embedded ids."""
    net = Net(dynamic=False)
    if ids:
        table = net.parameter(7, 16)
        x = net(aten.embedding.default, table, net.input(value=torch.tensor([[1, 2, 3, 6], [0, 5, 4, 1]])))
    else:
        table, x = None, net.features(4, width=16)
    q, k, v = (
        net(
            aten.transpose.int,
            net(
                aten.reshape.default,
                net(aten.linear.default, x, net.parameter(heads * width, 16)),
                [2, 4, heads, width],
            ),
            1,
            2,
        )
        for _ in range(3)
    )
    y = net(aten.transpose.int, net(aten.scaled_dot_product_attention.default, q, k, v), 1, 2)
    y = net(aten.reshape.default, y, [2, 4, heads * width])
    y = net(aten.add.Tensor, x, net(aten.linear.default, y, net.parameter(16, heads * width)))
    return net.program(net(aten.linear.default, y, net.parameter(7, 16) if table is None else table))


@pytest.mark.parametrize("ratio", [1.5, 1, 0, -1, math.nan, math.inf, True, "0.5"])
def test_a_ratio_must_be_a_share(ratio: object) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        Prune(ratio)


@given(st.floats(0.05, 0.8), st.sampled_from((1, 4, 8, 16)))
def test_the_plan_is_an_upper_bound_met_from_below(ratio: float, block: int) -> None:
    plan = plan_pruning(analysed(), Prune(ratio), block)
    budget = (1 - ratio) * plan.before.macs
    assert 0.99 * budget <= plan.after.macs <= budget
    assert all(len(stay) >= 1 for stay in plan.channels.values())
    assert all(len(stay) % block == 0 for name, stay in plan.channels.items() if name not in plan.relaxed)


def test_the_price_of_a_plan_is_the_cost_of_its_program() -> None:
    program = analysed().program
    plan = plan_pruning(analysed(), Prune(0.5), 8)
    assert plan.before == cost(program)
    assert plan.after == cost(PruneChannels(plan).run(program).program)
    assert plan.before.params == sum(parameter.numel() for parameter in program.module.parameters())


def test_small_weights_go_first() -> None:
    program = chain(8)
    with torch.no_grad():
        dict(program.module.named_parameters())["p0"][[1, 4, 6]] *= 1e-3
        dict(program.module.named_parameters())["p1"][[1, 4, 6]] *= 1e-3
        dict(program.module.named_parameters())["p2"][:, [1, 4, 6]] *= 1e-3
    plan = plan_pruning(analyse(program), Prune(3 / 8), 1)
    assert plan.channels == {"p0[0]": (0, 2, 3, 5, 7)}
    assert plan.kept == {"p0": {0: (0, 2, 3, 5, 7)}, "p1": {0: (0, 2, 3, 5, 7)}, "p2": {1: (0, 2, 3, 5, 7)}}


def test_two_plans_of_one_program_are_equal() -> None:
    first = plan_pruning(analyse(chain(64, 48, 32)), Prune(0.5), 16)
    assert first == plan_pruning(analyse(chain(64, 48, 32)), Prune(0.5), 16)


def test_a_budget_below_the_minimum_is_refused_with_the_minimum() -> None:
    with pytest.raises(BudgetError, match=r"can only bring it down to \d+\.\d%"):
        plan_pruning(analysed(), Prune(0.999), 16)


def test_a_model_without_groups_is_refused() -> None:
    net = Net(dynamic=False)
    program = net.program(net(aten.linear.default, net.input(3), net.parameter(5, 3)))
    with pytest.raises(InputError, match="no prunable group"):
        plan_pruning(analyse(program), Prune(0.5), 8)


def test_a_model_whose_groups_cost_nothing_is_refused() -> None:
    """Channels that are added and averaged take part in no multiply-accumulate."""
    net = Net(dynamic=False)
    x = net(aten.mul.Tensor, net.parameter(1, 6, 5), net.parameter(6, 1))
    scale = net(aten.mean.dim, net(aten.tanh.default, x), [1, 2])
    analysis = analyse(net.program(net(aten.mul.Tensor, net.input(3), scale)))
    assert [group.size for group in analysis.groups] == [6, 5]
    with pytest.raises(InputError, match="no prunable group"):
        plan_pruning(analysis, Prune(0.5), 8)


def test_weights_that_are_no_numbers_are_refused() -> None:
    program = chain(8, 8)
    with torch.no_grad():
        next(program.module.parameters())[0, 0] = math.nan
    with pytest.raises(InputError, match="p0 holds a NaN"):
        plan_pruning(analyse(program), Prune(0.5), 1)


def test_protected_patterns() -> None:
    plan = plan_pruning(analysed(), Prune(0.2, protect=("p2",)), 8)
    assert plan.protected == {"p0[0]": "protected by pattern 'p2'", "p2[0]": "protected by pattern 'p2'"}
    assert set(plan.channels) == {"p4[0]"}


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="'classifier.*'.*matches none"):
        plan_pruning(analysed(), Prune(0.3, protect=("p0", "classifier.*")), 8)


def test_embeddings_are_protected_unless_told_otherwise() -> None:
    analysis = analyse(attention(2, 4, ids=True))
    plan = plan_pruning(analysis, Prune(0.3), 1)
    assert plan.protected["p0[1]"] == "the width of an embedding is protected"
    plan = plan_pruning(analysis, Prune(0.3, protect_embeddings=False), 1)
    assert "p0[1]" not in plan.protected


@pytest.mark.parametrize(("heads", "width", "gone"), [(2, 8, "heads"), (8, 2, "width")])
def test_of_heads_and_their_width_one_is_pruned(heads: int, width: int, gone: str) -> None:
    """The larger factor is; the smaller is protected with the reason."""
    analysis = analyse(attention(heads, width))
    assert sorted(group.size for group in analysis.groups) == sorted([heads, width, width, 16])
    plan = plan_pruning(analysis, Prune(0.5), 1)
    sizes = {name: analysis.group(name).size for name in plan.protected}
    assert set(sizes.values()) == {min(heads, width)}
    assert all("is pruned instead" in reason for reason in plan.protected.values())


def test_a_factor_that_is_protected_in_part_still_rivals_the_other() -> None:
    """Of `cat(heads, heads) x width` one part is protected: heads and width must not both go."""
    net = Net(dynamic=False)
    joined = net(aten.cat.default, [net.features(width=12), net.features(width=20)], 1)
    x = net(aten.reshape.default, net(aten.tanh.default, joined), [2, 8, 4])
    analysis = analyse(net.program(net.read(x)))
    assert sorted(group.size for group in analysis.groups) == [3, 4, 5]
    plan = plan_pruning(analysis, Prune(0.2, protect=("p0",)), 1)
    pruned = {analysis.group(name).size for name in plan.channels}
    assert len(pruned) == 1


def test_alignment_is_wanted_of_tensors_not_of_groups() -> None:
    """A head of width four stands for four rows: multiples of four heads make multiples of sixteen."""
    analysis = analyse(attention(16, 4))
    heads = next(group for group in analysis.groups if group.size == 16 and group.positions == 4)
    target = make_plan(analysis, {heads.name: tuple(range(12))})
    options = Prune(1 - target.after.macs / target.before.macs, protect=("p1",))
    plan = plan_pruning(analysis, options, 16)
    assert len(plan.channels[heads.name]) == 12
    assert not plan.relaxed


def test_round_trip_through_json() -> None:
    plan = plan_pruning(analysed(), Prune(0.45, protect=("p4",)), 16)
    again = PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert str(again) == str(plan)
    assert "64 ->" in str(plan)
    assert "p4[0]: whole, protected" in str(plan)


@pytest.mark.parametrize("data", [{}, {"channels": []}, {"channels": {"a": 1}}, {"channels": {"a": [1]}}])
def test_other_data_is_no_plan(data: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not a pruning plan"):
        PruningPlan.from_dict(data)


@pytest.mark.parametrize("stay", [(), (1, 1), (2, 1), (-1, 2), (0, 8)])
def test_choices_are_checked(stay: tuple[int, ...]) -> None:
    analysis = analyse(chain(8))
    with pytest.raises(InputError, match="8 indices"):
        make_plan(analysis, {"p0[0]": stay})
    plan = make_plan(analysis, {"p0[0]": (0, 2)})
    with pytest.raises(InputError, match="8 indices"):
        PruneChannels(replace(plan, channels={"p0[0]": stay})).run(analysis.program)


def test_a_plan_of_another_program_is_refused() -> None:
    plan = make_plan(analyse(chain(8, 8)), {"p2[0]": (0, 2)})
    for other in (chain(8), chain(8, 9)):
        with pytest.raises(InputError, match="which this program does not have"):
            PruneChannels(plan).run(other)


def test_a_plan_whose_positions_were_edited_is_refused() -> None:
    """`kept` is what a reader sees: it must be what is done."""
    analysis = analyse(chain(8))
    plan = make_plan(analysis, {"p0[0]": (0, 2)})
    edited = replace(plan, kept={**plan.kept, "p1": {0: (0, 3)}})
    with pytest.raises(InputError, match="do not follow"):
        PruneChannels(edited).run(analysis.program)


def test_unknown_groups_are_refused_with_an_example_of_a_name() -> None:
    with pytest.raises(InputError, match="'p9.0.'"):
        make_plan(analysed(), {"p9[0]": (0,)})


def test_a_group_is_found_by_any_member() -> None:
    plan = make_plan(analyse(chain(8)), {"p2[1]": (0, 2)})
    assert plan.channels == {"p0[0]": (0, 2)}
    assert np.array_equal(plan.kept["p2"][1], (0, 2))


def test_an_unreachable_budget_names_the_largest_frozen_tensors() -> None:
    net = Net(dynamic=False)
    x = net(aten.linear.default, net.input(3), net.parameter(16, 3))
    wide = net(aten.linear.default, x, net.parameter(40, 16))
    rows = net(aten.linear.default, net(aten.logcumsumexp.default, wide, 1), net.parameter(3, 40))
    with pytest.raises(BudgetError) as caught:
        plan_pruning(analyse(net.program(rows)), Prune(ratio=0.9), block=1)
    (note,) = caught.value.context
    assert note.startswith("frozen as a whole are ")
    assert note.endswith("p2 (a model output, its order matters)")
