"""What makes a float program easier to quantize, before its ranges are measured, and a quantized one better
after.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.errors import NotSupported
from fxcompress.graph.program import Program
from fxcompress.pipeline import Journal


def refuse_unbuilt(request: Request) -> None:
    """Refuse what is asked for by name and not built.

    Raises:
        NotSupported: with the option.
    """
    options = request.quantize
    if options is None:
        return
    asked = {
        "equalize=True": options.equalize is True,
        "smooth=True": options.smooth is True,
        "correct_bias=True": options.correct_bias is True,
        'rounding="adaptive"': options.rounding != "nearest",
    }
    for option, wanted in asked.items():
        if wanted:
            raise NotSupported(f"{option} is not built", hint="leave it out")


def prepare(
    request: Request,  # noqa: ARG001
    deployed: Program,
    calibration: Iterable[Any],  # noqa: ARG001
    journal: Journal,  # noqa: ARG001
) -> Program:
    """The float program to quantize, which computes what `deployed` does.

    `calibration` can be read any number of times.
    """
    return deployed


def refine(
    request: Request,  # noqa: ARG001
    prepared: Program,  # noqa: ARG001
    variant: Variant,
    calibration: Iterable[Any],  # noqa: ARG001
    journal: Journal,  # noqa: ARG001
) -> Variant:
    """A variant of the prepared program with smaller errors and the same operators in int8.

    `calibration` can be read any number of times.
    """
    return variant
