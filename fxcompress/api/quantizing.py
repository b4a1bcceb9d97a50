"""From the folded float program to variants in fewer bits: prepare, calibrate, decide, quantize, refine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fxcompress.analysis.calibration import calibrate
from fxcompress.api.preparing import prepare, refine
from fxcompress.api.quantizing_modes import mode_variants
from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.graph.program import Program
from fxcompress.numerics.ranges import ESTIMATORS
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import plan_quantization, tensors_to_observe

__all__ = ["Calibration", "Variant", "variants"]

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
    """The programs to try instead of `deployed`; none where nothing can be quantized."""
    if request.quantize is None:
        return ()
    if request.quantize.mode != "int8" or calibration is None:
        again = None if calibration is None else calibration.again
        return mode_variants(request, deployed, again, journal)
    prepared = prepare(request, deployed, calibration.again, journal)
    with journal.step("calibrate"):
        observed = tensors_to_observe(prepared, request.target, request.quantize)
        estimator = ESTIMATORS[request.quantize.calibrator]
        ranges = calibrate(prepared, calibration.everything, observed, estimator=estimator)
    with journal.step("plan-quantization"):
        plan = plan_quantization(prepared, ranges, request.target, request.quantize)
    quantized = journal.apply(QuantizeTensors(plan), prepared)
    if not plan.kernels:
        return ()
    return (refine(request, prepared, Variant(FULL, quantized, plan), calibration.again, journal),)
