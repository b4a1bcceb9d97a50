"""Bounds on the command line."""

from __future__ import annotations

import click
import pytest

from fxcompress.cli.budgets import pruning
from fxcompress.errors import InputError
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.prune import Prune


def test_bounds_are_numbers_or_shares() -> None:
    asked = pruning(None, ["ms=3.0", "macs=50%", "params=1e6"])
    assert asked == Prune(budget=Budget(ms=3.0, macs="50%", params=1e6))
    assert pruning(0.5, ["ms=75%"]) == Prune(0.5, budget=Budget(ms="75%"))


def test_without_bounds_the_share_is_what_it_was() -> None:
    assert pruning(None, []) is None
    assert pruning(0.5, []) == 0.5


@pytest.mark.parametrize("text", ["ms", "3.0", "flops=50%", "=3", "ms:3"])
def test_what_is_no_bound_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no bound"):
        pruning(None, [text])


def test_a_bound_is_stated_once() -> None:
    with pytest.raises(click.BadParameter, match="twice"):
        pruning(None, ["ms=3", "ms=4"])


@pytest.mark.parametrize("text", ["ms=", "ms=0", "ms=nan", "ms=120%", "ms=fast"])
def test_a_bound_that_cannot_be_is_a_typed_error(text: str) -> None:
    with pytest.raises(InputError, match="the budget ms="):
        pruning(None, [text])


def test_rules_go_with_a_share_or_a_bound() -> None:
    rules = {"saliency": "l1", "scope": None, "protect": ("head.*",)}
    assert pruning(0.5, [], rules) == Prune(0.5, saliency="l1", protect=("head.*",))
    assert pruning(None, ["macs=50%"], {"scope": "kind"}) == Prune(budget=Budget(macs="50%"), scope="kind")
    assert pruning(0.5, [], {"saliency": None, "protect": ()}) == 0.5
    with pytest.raises(click.UsageError, match="--saliency, --protect says how to prune"):
        pruning(None, [], rules)
