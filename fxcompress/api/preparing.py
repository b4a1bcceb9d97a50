"""What makes a float program easier to quantize, before its ranges are measured, and a quantized one better
after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.graph.program import Program
from fxcompress.passes.correct_biases import CorrectBiases
from fxcompress.passes.equalize_channels import EqualizeChannels
from fxcompress.passes.migrate_scales import MigrateScales
from fxcompress.passes.quantized_corrections import Corrected
from fxcompress.passes.round_adaptively import RoundAdaptively
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization_plan import Quantize


def prepare(request: Request, deployed: Program, calibration: Iterable[Any], journal: Journal) -> Program:
    """The float program to quantize, which computes what `deployed` does.

    Channels are scaled where the noise predicted for int8 falls; False in the options leaves a step out.
    `calibration` can be read any number of times.
    """
    options = request.quantize or Quantize()
    program = deployed
    if options.smooth is not False:
        program = journal.apply(MigrateScales(calibration), program)
    if options.equalize is not False:
        program = journal.apply(EqualizeChannels(calibration), program)
    return program


def refine(
    request: Request, prepared: Program, variant: Variant, calibration: Iterable[Any], journal: Journal
) -> Variant:
    """A variant of the prepared program with smaller errors and the same operators in int8.

    Only stored integers change, and only where that brings the outputs closer on samples that chose nothing.
    `calibration` can be read any number of times.
    """
    options = request.quantize or Quantize()
    biases = options.correct_bias is not False
    if options.rounding == "adaptive":
        stage = RoundAdaptively(prepared, calibration, biases=biases)
        outcome = journal.outcome(stage, variant.program)
    elif biases:
        outcome = journal.outcome(CorrectBiases(prepared, calibration), variant.program)
    else:
        return variant
    if outcome.program is variant.program or not isinstance(outcome, Corrected):
        return variant
    return replace(variant, program=outcome.program, notes=(*variant.notes, _finding(outcome)))


def _finding(outcome: Corrected) -> str:
    kept = (
        f"{outcome.reported} samples that chose nothing" if outcome.apart else f"{outcome.reported} samples"
    )
    return (
        f"stored integers corrected in {len(outcome.changed)} layers: squared error of the outputs "
        f"{outcome.before:.3g} to {outcome.after:.3g} of their variance, on {kept}"
    )
