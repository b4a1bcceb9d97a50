"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    """Note in the context that errors should be told as JSON too."""
    ctx.meta["fxcompress.json"] = value
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=_remember,
    help="Print JSON on stdout and nothing else there.",
)
trust_option = click.option(
    "--trust", is_flag=True, help="Open a .pt2 file that could run code. Only for files you made yourself."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Threads inside an operator.",
)
batch_option = click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Samples per timed call.",
)
