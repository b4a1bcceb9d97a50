"""What makes a float program easier to quantize, before its ranges are measured, and a quantized one better
and smaller after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.passes.correct_biases import CorrectBiases
from fxcompress.passes.equalize_channels import EqualizeChannels
from fxcompress.passes.migrate_scales import MigrateScales
from fxcompress.passes.quantize_tables import QuantizeTables, Tabled
from fxcompress.passes.quantized_corrections import Corrected
from fxcompress.passes.round_adaptively import RoundAdaptively
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization_plan import Quantize
from fxcompress.plan.tables import lookups


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
    """A variant of the prepared program with smaller errors, the same operators in int8 and small tables.

    Stored integers change only where that brings the outputs closer on samples that chose nothing.
    `calibration` can be read any number of times.
    """
    better = _corrected(request, prepared, variant, calibration, journal)
    made = with_tables(request, better.program, journal)
    if not made.changed or better.plan is None:
        return better
    return replace(better, program=made.program, plan=better.plan.with_lookups(made.lookups))


def _corrected(
    request: Request, prepared: Program, variant: Variant, calibration: Iterable[Any], journal: Journal
) -> Variant:
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


def with_tables(request: Request, program: Program, journal: Journal) -> Tabled:
    """A quantized program with its large tables in integers too, where the target looks rows of those up."""
    options = request.quantize or Quantize()
    if not request.target.integer_tables or not any(lookups(node) for node in walk.tensor_nodes(program)):
        return Tabled(program, ())
    made = journal.outcome(QuantizeTables(options.exclude), program)
    assert isinstance(made, Tabled)
    return made


def _finding(outcome: Corrected) -> str:
    kept = (
        f"{outcome.reported} samples that chose nothing" if outcome.apart else f"{outcome.reported} samples"
    )
    return (
        f"stored integers corrected in {len(outcome.changed)} layers: squared error of the outputs "
        f"{outcome.before:.3g} to {outcome.after:.3g} of their variance, on {kept}"
    )
