"""Several upper bounds at once on what may remain after pruning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Upper bounds: a number is absolute, a string such as `"50%"` the share of the original that may remain.

    Args:
        macs: multiply-accumulates per sample.
        params: trainable parameters.
        bytes: of the stored tensors.
        ms: milliseconds per call on the target.
    """

    macs: float | str | None = None
    params: float | str | None = None
    bytes: float | str | None = None
    ms: float | str | None = None
