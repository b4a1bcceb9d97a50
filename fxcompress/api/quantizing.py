"""From the folded float program to variants in fewer bits: prepare, calibrate, decide, quantize, refine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fxcompress.api.calibrating import measured_ranges
from fxcompress.api.frontier import GIVEN_UP
from fxcompress.api.mixing import mixes
from fxcompress.api.preparing import prepare, refine
from fxcompress.api.quantizing_modes import mode_variants
from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.numerics.ranges import Range
from fxcompress.passes.convolve_norms import ConvolveNorms
from fxcompress.passes.gather_shuffles import GatherShuffles
from fxcompress.passes.pool_globally import PoolGlobally
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal, Stage
from fxcompress.plan.quantization import (
    Quantize,
    plan_quantization,
    tensors_of_any_choice,
)

__all__ = ["Calibration", "Variant", "variants"]

INTEGER_FORMS: tuple[Stage, ...] = (PoolGlobally(), GatherShuffles(), ConvolveNorms())
"""What a program to quantize goes through: operators in the form that integer kernels exist for."""

FULL = "int8"
"""The name of the variant in which everything with an integer kernel runs in int8."""


@dataclass(frozen=True)
class Calibration:
    """The calibration data.

    Args:
        everything: all of it; where the user passed an iterator, it can be read once.
        again: what can be read any number of times: all of it, or the beginning of an iterator.
    """

    everything: Iterable[Any]
    again: Iterable[Any]


def variants(
    request: Request, deployed: Program, calibration: Calibration | None, journal: Journal
) -> tuple[Variant, ...]:
    """The programs to try instead of `deployed`; none where nothing can be quantized.

    Raises:
        InputError: the calibration data is empty or does not fit the model.
    """
    if request.quantize is None:
        return ()
    if request.quantize.mode != "int8" or calibration is None:
        again = None if calibration is None else calibration.again
        return mode_variants(request, deployed, again, journal)
    if next(iter(calibration.again), None) is None:
        raise InputError("the calibration data is empty", hint="pass an iterable with at least one batch")
    formed = journal.apply_all(INTEGER_FORMS, deployed)
    prepared = prepare(request, formed, calibration.again, journal)
    drafts = _drafts(request, prepared, calibration, journal)
    return tuple(refine(request, prepared, draft, calibration.again, journal) for draft in drafts)


def _drafts(
    request: Request, prepared: Program, calibration: Calibration, journal: Journal
) -> Iterator[Variant]:
    """Everything in int8 first, then mixtures of float and int8 that are none of those before."""
    options = request.quantize or Quantize()
    mixed = options.precision == "auto" and request.target.timed
    with journal.step("calibrate"):
        # Even where everything runs in int8: what is never reached is spared, and then others are quantized.
        observed = tensors_of_any_choice(prepared, request.target, options)
        ranges = measured_ranges(request, prepared, calibration.everything, calibration.again, observed)
    with journal.step("plan-quantization"):
        plan = plan_quantization(prepared, ranges, request.target, options)
    quantized = journal.apply(QuantizeTensors(plan), prepared)
    if not plan.kernels:
        return
    without = partial(_without, request, prepared, ranges, calibration, journal)
    yield Variant(FULL, quantized, plan, reference=prepared, without=without)
    if not mixed:
        return
    known = [plan.kernels]
    chosen = mixes(request, prepared, ranges, prepared.flat_example(), journal)
    for mix in chosen.found:
        with journal.step("plan-quantization"):
            plan = plan_quantization(prepared, ranges, request.target, options, integers=mix.operators)
        if plan.kernels and plan.kernels not in known:
            known.append(plan.kernels)
            mixture = journal.apply(QuantizeTensors(plan), prepared)
            yield Variant(mix.name, mixture, plan, chosen.notes, reference=prepared)


def _without(
    request: Request,
    prepared: Program,
    ranges: Mapping[str, Range],
    calibration: Calibration,
    journal: Journal,
    operators: frozenset[str],
) -> Variant | None:
    """Everything in int8 except some operators; None where nothing is left."""
    options = request.quantize or Quantize()
    spared = replace(options, exclude=(*options.exclude, *sorted(operators)))
    plan = plan_quantization(prepared, ranges, request.target, spared)
    if not plan.kernels:
        return None
    said = tuple(replace(item, reason=GIVEN_UP) if item.node in operators else item for item in plan.declined)
    plan = replace(plan, declined=said)
    quantized = journal.apply(QuantizeTensors(plan), prepared)
    draft = Variant(FULL, quantized, plan, reference=prepared)
    return refine(request, prepared, draft, calibration.again, journal)
