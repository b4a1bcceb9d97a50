"""Budgets check themselves and state limits in absolute terms."""

from __future__ import annotations

import math

import pytest

from fxcompress.errors import InputError
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import Prune


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
