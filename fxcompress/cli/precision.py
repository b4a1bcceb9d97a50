"""`--quantize int8 --precision full --keep-float head*`: how to quantize, on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fxcompress.plan.quantization_plan import Quantize


def quantization(mode: str | None, rules: Mapping[str, Any]) -> Quantize | None:
    """What `--quantize` and the options beside it ask for.

    `rules` are other fields of `Quantize` by name, those that were not stated as None or empty.

    Raises:
        click.UsageError: rules without a mode.
        NotSupported: there is no such mode.
    """
    given = {name: value for name, value in rules.items() if value}
    if mode is None:
        if given:
            raise click.UsageError("--precision, --keep-float and --calibrator need --quantize")
        return None
    return Quantize(mode, **given)
