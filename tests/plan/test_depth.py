"""Which blocks go: the least influential first, no more than the budget takes, and a plan is data."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fxcompress.analysis.depth_price import depth_price
from fxcompress.analysis.residual import residual_blocks
from fxcompress.errors import BudgetError, InputError
from fxcompress.graph.capture import capture
from fxcompress.plan.depth import Depth, DepthPlan, plan_depth
from fxcompress.recovery.depth import shorten
from tests.passes.models import Case, Chain
from tests.passes.residual import Residual, convolutions, stack


def shares() -> list[float]:
    """The share of MACs that each of the three blocks of the stack holds: a, b and the larger c."""
    program = stack()
    price = depth_price(program)
    full = price.without({}).macs
    return [1 - price.without({b.name: b.identity}).macs / full for b in residual_blocks(program)[0]]


def test_the_least_influential_go_first() -> None:
    plan = plan_depth(stack(), Depth(shares()[0]), {"add": 0.3, "add_1": 0.1, "add_2": 0.2})
    assert plan.removed == {"add_1": 1}
    assert plan.after.macs < plan.before.macs


def test_a_budget_that_one_block_misses_takes_two() -> None:
    plan = plan_depth(stack(), Depth(shares()[0] + 0.01), {"add": 0.1, "add_1": 0.2, "add_2": 0.3})
    assert plan.removed == {"add": 0, "add_1": 1}


def test_what_is_not_needed_any_more_comes_back() -> None:
    """`a` goes first and is too small; `c` alone is enough, and `a` comes back."""
    plan = plan_depth(stack(), Depth(shares()[0] + 0.01), {"add": 0.1, "add_1": 0.3, "add_2": 0.2})
    assert plan.removed == {"add_2": 0}


def test_parameters_are_a_budget_too() -> None:
    plan = plan_depth(stack(), Depth(0.4, of="params"), {"add": 0.1, "add_1": 0.2, "add_2": 0.3})
    assert plan.after.params <= 0.6 * plan.before.params


def test_protected_blocks_stay() -> None:
    scores = {"add": 0.1, "add_1": 0.2, "add_2": 0.3}
    plan = plan_depth(stack(), Depth(0.1, protect=("a",)), scores)
    assert plan.removed == {"add_1": 1}
    assert plan.protected == {"add": "protected by pattern 'a'"}
    with pytest.raises(InputError, match="matches no residual block"):
        plan_depth(stack(), Depth(protect=("z*",)), scores)


def test_a_budget_out_of_reach_states_the_reachable() -> None:
    most = sum(shares())
    with pytest.raises(BudgetError, match=f"{most:.1%}") as caught:
        plan_depth(stack(), Depth(0.95), {"add": 0.1, "add_1": 0.2, "add_2": 0.3})
    assert caught.value.hint is not None
    reachable = float(caught.value.hint.split("at most ")[1].split(",")[0])
    plan = plan_depth(stack(), Depth(reachable), {"add": 0.1, "add_1": 0.2, "add_2": 0.3})
    assert len(plan.removed) == 3


def test_a_model_without_blocks_is_refused_with_what_was_seen() -> None:
    case = Case("linear", lambda: nn.Linear(3, 3), (2, 3))
    with pytest.raises(InputError, match="no residual block"):
        plan_depth(capture(case.model(), case.example()), Depth(), {})
    with pytest.raises(InputError, match="was not measured"):
        plan_depth(convolutions(), Depth(), {})


@pytest.mark.parametrize(
    "options", [{"ratio": 0.0}, {"ratio": 1.0}, {"of": "bytes"}, {"influence": "guess"}], ids=str
)
def test_options_check_themselves(options) -> None:
    with pytest.raises(InputError):
        Depth(**options)


def test_a_plan_is_data() -> None:
    plan = plan_depth(stack(), Depth(0.2), {"add": 0.1, "add_1": 0.2, "add_2": 0.3})
    assert DepthPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert "add (a): influence 0.1, removed" in str(plan)
    with pytest.raises(InputError, match="not a depth plan"):
        DepthPlan.from_dict({"removed": {}})


def test_a_block_stays_where_an_output_would_be_an_input() -> None:
    """Removing both, each half of the cost, would leave nothing: the more influential one stays."""
    torch.manual_seed(0)
    model, x = Chain(a=Residual(4, 6), b=Residual(4, 6)).eval(), torch.randn(5, 4)
    with pytest.raises(BudgetError, match=r"hold 50\.0%"):
        shorten(model, x, calibration=[x], depth=Depth(0.6))
    assert len(shorten(model, x, calibration=[x], depth=Depth(0.4)).plan.removed) == 1
