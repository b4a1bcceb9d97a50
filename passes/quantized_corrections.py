"""Corrections of a quantized program's stored integers, layer by layer: what `CorrectBiases` and
`RoundAdaptively` share.

The float and the quantized program run side by side on calibration data. A layer is corrected by what its
output lacks of the float layer's, while it reads what the quantized layers before it, already corrected, hand
over. Samples are split: most fit, some choose per output channel whether a fit is kept, and, where there are
enough, others give the error of the whole model, which decides whether the corrections are kept at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxcompress.analysis.quantized_sites import QuantizedRun, QuantizedSite, Stored, quantized_sites
from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.least_squares import Fit, Moments, best_intercept
from fxcompress.passes.contract import NOTHING_TO_JUDGE_BY, Decline, Outcome, worse

MEMORY = 512 * 2**20
"""Bytes of activations that may be held; samples beyond that are not read."""

INT32 = 2**31 - 1

NO_GAIN = "no correction brings it closer to the float layer on samples that no fit saw"


@dataclass(frozen=True)
class Corrected(Outcome):
    """What a correction did, and the error of the outputs on samples that no fit saw.

    Args:
        before, after: squared difference to the float program's outputs, as a share of their variance.
        used: samples read.
        reported: of how many `before` and `after` are the error.
        apart: whether those chose nothing; where there are few samples they did, and the error is optimistic.
    """

    before: float = 0.0
    after: float = 0.0
    used: int = 0
    reported: int = 0
    apart: bool = False


@dataclass(frozen=True)
class Data:
    """What corrections are made from.

    Args:
        reference: the float program that was quantized.
        batches: calibration data; labels are ignored.
        memory: bytes of activations that may be held at once.
    """

    reference: Program = field(repr=False)
    batches: Iterable[Any] = field(repr=False)
    memory: int = MEMORY


Fix = Callable[[Program, QuantizedSite, Moments, Moments], float | str]
"""Corrects one layer in place, from the moments that fit and those that judge: what it leaves of the squared
error, or why it does nothing.
"""


def corrected(data: Data, program: Program, fix: Fix, *, inputs: bool) -> Corrected:
    """The program with every layer fixed, or the one given where its outputs do not come closer.

    `inputs` says whether the fix needs the moments of what a layer reads.

    Raises:
        InputError: unusable calibration data, or a layer that yields NaN or infinities on it.
    """
    edited = program.copy()
    run = QuantizedRun(data.reference, edited)
    used = run.load(data.batches, data.memory)
    if not run.judged:
        return Corrected(program, (), (Decline("the outputs", NOTHING_TO_JUDGE_BY),), used=used)
    counts = used, run.reported, run.apart
    before = run.output_error()
    found, refusals = quantized_sites(data.reference, edited, inputs=inputs)
    declined = [Decline(item.node.name, item.reason, walk.source(item.node)) for item in refusals]
    changed = []
    for site in found:
        run.reach(site)
        fitted, judged = run.lacks(site, inputs=inputs)
        _require_finite(site, fitted, judged)
        left = fix(edited, site, fitted, judged)
        if isinstance(left, str):
            declined.append(Decline(site.node.name, left, walk.source(site.node)))
        else:
            run.refresh(site)
            changed.append(f"{site.node.name}: {left:.1%} of the squared error left")
    run.finish()
    after = run.output_error()
    if not changed or not after < before:
        declined.append(Decline("the outputs", worse("the correction", before, after)))
        return Corrected(program, (), tuple(declined), before, before, *counts)
    edit.reinfer(edited)
    return Corrected(edited, tuple(changed), tuple(declined), before, after, *counts)


def _require_finite(site: QuantizedSite, fitted: Moments, judged: Moments) -> None:
    if not (fitted.finite and judged.finite):
        raise InputError(
            f"{site.node.name}, or what reaches it, holds a NaN or an infinity for the calibration data",
            hint="look at the calibration data, and at the model's numerics on it",
            node=site.node.format_node(),
            source=walk.source(site.node),
        )


def chosen(fitted: Moments, judged: Moments, changes: Iterable[Tensor], *, intercept: bool) -> Fit:
    """For every output the change of its weights that does best on the samples that judge, with its bias.

    Args:
        changes: `[groups, inputs, outputs]` each; no change at all is always tried too, without a bias.
        intercept: whether a bias may take the mean of what is then lacking.
    """
    best = Fit(torch.zeros_like(fitted.xr), torch.zeros_like(fitted.r))
    least = judged.rr
    for weight in changes:
        bias = torch.zeros_like(fitted.r)
        if intercept:
            bias = best_intercept(fitted, weight)
        found = judged.errors(Fit(weight, bias))
        better = found < least
        least = torch.where(better, found, least)
        best = Fit(torch.where(better[:, None], weight, best.weight), torch.where(better, bias, best.bias))
    return best


def share_left(judged: Moments, fit: Fit) -> float:
    """What a fit leaves of the squared error on the samples that judge."""
    lacked = float(judged.rr.sum())
    return float(judged.errors(fit).sum()) / lacked if lacked else 1.0


def shift_bias(program: Program, bias: Stored, shift: Tensor) -> bool:
    """Add to a stored bias, in whole units where it is stored as integers; whether anything changed."""
    stored = walk.tensor(program, bias.node)
    if bias.scales is None:
        new = (stored.detach().double() + shift).to(stored.dtype)
    else:
        new = (stored.double() + (shift / bias.units(stored)).round()).clamp(-INT32, INT32).to(stored.dtype)
    edit.set_tensor(program, str(bias.node.target), new)
    return not torch.equal(new, stored)
