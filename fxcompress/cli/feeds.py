"""Inputs made up for a timing run: random values in the shapes that an ONNX file declares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxcompress.cli.specs import existing
from fxcompress.errors import InputError
from fxcompress.runtime.session import dtype_of, open_session

SEED = 0


def feeds_for(file: Path, *, batch: int, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Standard-normal floats, integers that are zero or one, in the shapes of the file's inputs.

    Args:
        batch: size of a dynamic first dimension that `sizes` does not name.
        sizes: sizes of dynamic dimensions by name.

    Raises:
        InputError: a dynamic dimension other than the first has no size, or a size names no dimension.
    """
    inputs = open_session(str(existing(file))).get_inputs()
    unknown = set(sizes) - {dim for value in inputs for dim in value.shape if isinstance(dim, str)}
    if unknown:
        raise InputError(f"{file} has no dynamic dimension called {sorted(unknown)}")
    generator = np.random.default_rng(SEED)
    return {value.name: _random(value, generator, batch, sizes) for value in inputs}


def _random(value: Any, generator: np.random.Generator, batch: int, sizes: Mapping[str, int]) -> NDArray[Any]:
    shape = []
    for place, dim in enumerate(value.shape):
        size = dim if isinstance(dim, int) else sizes.get(dim, batch if place == 0 else None)
        if size is None:
            raise InputError(
                f"dimension {place} of input {value.name!r} is dynamic",
                hint=f"say how large: --size {dim}=128",
            )
        shape.append(size)
    dtype = dtype_of(value)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)
