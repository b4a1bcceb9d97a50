"""The modes of quantization beside static int8: dynamic int8, weights alone, shorter floats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.errors import NotSupported
from fxcompress.graph.program import Program
from fxcompress.pipeline import Journal

BUILT: tuple[str, ...] = ()
"""The modes that `mode_variants` makes."""


def refuse_unbuilt_mode(request: Request) -> None:
    """Refuse a mode that is not built, before any work.

    Raises:
        NotSupported: with the modes that are.
    """
    if request.quantize is not None and request.quantize.mode not in ("int8", *BUILT):
        raise NotSupported(
            f"quantize={request.quantize.mode!r} is not built",
            hint=f"the modes that are: {', '.join(('int8', *BUILT))}",
        )


def mode_variants(
    request: Request,
    deployed: Program,  # noqa: ARG001
    calibration: Iterable[Any] | None,  # noqa: ARG001
    journal: Journal,  # noqa: ARG001
) -> tuple[Variant, ...]:
    """The variants of a mode other than static int8; none where nothing of the program gains from it.

    `calibration` is what the user passed, which may be nothing, and can be read any number of times.
    """
    refuse_unbuilt_mode(request)
    return ()
