"""Budgets check themselves and state limits in absolute terms."""

from __future__ import annotations

import math
from functools import cache

import pytest

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.errors import InputError
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from tests.ops.building import Net, aten

UNITS = ("macs", "params", "bytes")


def test_a_number_is_absolute_and_a_text_is_a_share() -> None:
    budget = Budget(macs="50%", params=1000, ms=3.0)
    assert budget.limit("macs", 400.0) == 200.0
    assert budget.limit("params", 400.0) == 1000.0
    assert budget.limit("ms", 12.0) == 3.0
    assert budget.limit("bytes", 400.0) is None
    assert budget.given() == {"macs": "50%", "params": 1000, "ms": 3.0}


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, True, "0.5", "0%", "101%", "-5%", "fifty%", "nan%", "", "%", [1]]
)
def test_what_is_no_bound_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="neither a positive number of milliseconds"):
        Budget(ms=value)


def test_a_budget_without_a_bound_is_refused() -> None:
    with pytest.raises(InputError, match="without a bound"):
        Budget()


def test_a_budget_replaces_the_default_ratio() -> None:
    assert Prune(budget=Budget(params="50%")).ratio is None
    assert Prune(0.3, budget=Budget(params="50%")).ratio == 0.3


@cache
def uneven() -> Analysis:
    """A layer with most of the MACs, one with most of the parameters, and one with most of the bytes."""
    net = Net(dynamic=False)
    x = net(aten.tanh.default, net.channels(32, 12, 12))
    x = net(aten.linear.default, net(aten.mean.dim, x, [2, 3]), net.parameter(64, 32))
    x = net(aten.tanh.default, net(aten.linear.default, net(aten.tanh.default, x), net.parameter(64, 64)))
    x = net(aten.tanh.default, net(aten.linear.default, x, net.buffer(net.noise(128, 64))))
    return analyse(net.program(net(aten.linear.default, x, net.buffer(net.noise(4, 128)))))


@pytest.mark.parametrize("spelling", ["share", "number"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_plan_uses_its_bound_up_and_stays_below_it(unit: str, spelling: str) -> None:
    """A share and the number it stands for are one bound, each in its own unit."""
    limit = 0.5 * getattr(plan_pruning(uneven(), Prune(0.1), 1).before, unit)
    plan = plan_pruning(uneven(), Prune(budget=Budget(**{unit: "50%" if spelling == "share" else limit})), 1)
    assert 0.98 * limit <= getattr(plan.after, unit) <= limit


@pytest.mark.parametrize("tight", UNITS)
def test_several_bounds_hold_at_once(tight: str) -> None:
    """The tight one is used up; the others, in whichever spelling, are kept."""
    before = plan_pruning(uneven(), Prune(0.1), 1).before
    shares = {unit: 0.4 if unit == tight else 0.9 for unit in UNITS}
    limits = {unit: share * getattr(before, unit) for unit, share in shares.items()}
    budget = Budget(macs=limits["macs"], params=f"{shares['params']:.0%}", bytes=limits["bytes"])
    plan = plan_pruning(uneven(), Prune(budget=budget), 1)
    assert all(getattr(plan.after, unit) <= limit for unit, limit in limits.items())
    assert getattr(plan.after, tight) >= 0.98 * limits[tight]
