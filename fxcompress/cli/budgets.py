"""`--budget macs=50%`, `--saliency taylor`: what to prune, on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from fxcompress.plan.budget_options import UNITS, Budget
from fxcompress.plan.prune import Prune


def pruning(
    share: float | None, budgets: Sequence[str], rules: Mapping[str, Any] | None = None
) -> Prune | float | None:
    """What `--prune` and `--budget` ask for together; several bounds hold at once.

    `rules` are other fields of `Prune`, those that were not stated as None or empty.

    Raises:
        click.UsageError: rules without a share or a bound.
        click.BadParameter: a text that is no bound, or two bounds of one name.
        InputError: a bound that cannot be, or a rule that does not fit the model.
    """
    given = {name: value for name, value in (rules or {}).items() if value}
    if given and share is None and not budgets:
        names = ", ".join(f"--{name}" for name in given)
        raise click.UsageError(f"{names} says how to prune: say how much, too, with --prune or --budget")
    if not budgets:
        return Prune(ratio=share, **given) if given else share
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
    return Prune(ratio=share, budget=Budget(**stated), **given)


def _amount(text: str) -> float | str:
    """A number, or a share, which a budget checks itself."""
    try:
        return float(text)
    except ValueError:
        return text
