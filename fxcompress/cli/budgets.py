"""`--budget macs=50%`: upper bounds on the command line."""

from __future__ import annotations

from collections.abc import Sequence

import click

from fxcompress.plan.budget_options import UNITS, Budget
from fxcompress.plan.prune import Prune


def pruning(share: float | None, budgets: Sequence[str]) -> Prune | float | None:
    """What `--prune` and `--budget` ask for together; several bounds hold at once.

    Raises:
        click.BadParameter: a text that is no bound, or two bounds of one name.
        InputError: a bound that cannot be.
    """
    if not budgets:
        return share
    stated: dict[str, float | str] = {}
    for text in budgets:
        name, equals, value = text.partition("=")
        if not equals or name not in UNITS:
            raise click.BadParameter(
                f"{text!r} is no bound; write one of {', '.join(f'{unit}=50%' for unit in UNITS)}",
                param_hint="'--budget'",
            )
        if name in stated:
            raise click.BadParameter(f"{name} is bounded twice", param_hint="'--budget'")
        stated[name] = _amount(value)
    return Prune(ratio=share, budget=Budget(**stated))


def _amount(text: str) -> float | str:
    """A number, or a share, which a budget checks itself."""
    try:
        return float(text)
    except ValueError:
        return text
