"""How far outputs are from those that are wanted, and how much these vary: what corrections are judged by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def gap(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Squared difference of floating outputs, where finite ones are wanted."""
    return sum(
        float(torch.where(one.isfinite(), one - other, 0.0).double().square().sum())
        for one, other in zip(wanted, found, strict=True)
        if one.is_floating_point() and one.shape == other.shape
    )


def worst(errors: Sequence[float], references: Sequence[float]) -> tuple[float, int]:
    """The largest relative error among outputs and its place, given squares of what each is off and of its
    norm.

    Each is judged by its own norm: scores do not hide behind boxes in pixels. One that is zero throughout has
    none, and the norm of all stands in.
    """
    whole = sum(references)
    relative = [
        _relative(error, reference or whole) for error, reference in zip(errors, references, strict=True)
    ]
    place = max(range(len(relative)), key=relative.__getitem__, default=0)
    return (relative[place] if relative else 0.0), place


def _relative(error: float, reference: float) -> float:
    if error == 0.0:
        return 0.0
    return math.sqrt(error / reference) if reference and not math.isnan(error) else math.inf


def variance(outputs: Iterable[Sequence[Tensor]]) -> float:
    """The variance over samples of floating outputs, summed over the entries of one sample.

    Batches whose outputs differ in shape (sequences of several lengths) have means of their own; entries are
    0 where they are not finite. 0 where rounding is all there is.
    """
    sums: dict[tuple[int, ...], tuple[int, Tensor, Tensor]] = {}
    counts: dict[int, int] = {}
    for several in outputs:
        for place, output in enumerate(several):
            if not output.is_floating_point():
                continue
            rows = torch.where(output.isfinite(), output, 0.0).double()
            rows = rows if rows.dim() else rows.reshape(1)
            key = (place, *rows.shape[1:])
            count, mean, squares = sums.get(key, (0, torch.zeros_like(rows[0]), torch.zeros_like(rows[0])))
            total, own = count + len(rows), rows.mean(0)
            within = squares + (rows - own).square().sum(0)
            between = (own - mean).square() * count * len(rows) / total
            sums[key] = total, mean + (own - mean) * len(rows) / total, within + between
            counts[place] = counts.get(place, 0) + len(rows)
    return sum(
        float(torch.where(squares > 1e-12 * count * mean.square(), squares, 0.0).sum()) / counts[key[0]]
        for key, (count, mean, squares) in sums.items()
    )
