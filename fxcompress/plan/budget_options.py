"""What may remain of a model, stated as upper bounds: options that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np

from fxcompress.errors import InputError

UNITS = {
    "macs": "multiply-accumulates per sample",
    "params": "parameters",
    "bytes": "bytes of stored tensors",
    "ms": "milliseconds per call on this machine",
}


@dataclass(frozen=True)
class Budget:
    """What a pruned model may cost at most; several bounds hold at once.

    A number is an absolute upper bound; a text such as `"50%"` is the share of the original that may remain.

    Args:
        macs: multiply-accumulates per sample.
        params: trainable values.
        bytes: bytes of all stored tensors, before quantization.
        ms: milliseconds per call of the float model in the target, measured on this machine at the batch
            and threads of the call.

    Raises:
        InputError: no bound at all, or one that is neither a positive number nor a share.
    """

    macs: float | str | None = None
    params: float | str | None = None
    bytes: float | str | None = None
    ms: float | str | None = None

    def __post_init__(self) -> None:
        given = self.given()
        if not given:
            raise InputError(
                "a Budget without a bound", hint=f"bounds are {', '.join(UNITS)}: Budget(ms=3.0)"
            )
        for name, value in given.items():
            if not (_share_of(value) is not None if isinstance(value, str) else _amount(value)):
                raise InputError(
                    f"the budget {name}={value!r} is neither a positive number of {UNITS[name]} nor a share",
                    hint=f'{name}="50%" lets half of the original remain, a number is an absolute bound',
                )

        for name, value in given.items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())

    def given(self) -> dict[str, float | str]:
        """The bounds that were stated, as they were stated."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) is not None
        }

    def limit(self, name: str, original: float) -> float | None:
        """The absolute bound called `name` where the original costs `original`; None where there is none."""
        value = getattr(self, name)
        if value is None:
            return None
        return original * (_share_of(value) or 0.0) if isinstance(value, str) else float(value)


def _amount(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf


def _share_of(text: str) -> float | None:
    """The share that `"50%"` spells, None for what spells none; above 0 and at most 1."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100
    except ValueError:
        return None
    return share if text.strip().endswith("%") and 0 < share <= 1 else None
