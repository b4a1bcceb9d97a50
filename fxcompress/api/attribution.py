"""Where quantization hurts: for the report of an `optimize` call, and on its own for `fxcompress inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fxcompress.analysis.sensitivity import SAMPLES, Sensitivity, attribute, sensitivity
from fxcompress.api.quantizing import Calibration, quantized
from fxcompress.api.request import Request
from fxcompress.api.variant import Batch, Variant
from fxcompress.errors import NotSupported
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import drop_quantizers, is_quantized
from fxcompress.pipeline import Journal, Progress
from fxcompress.plan.quantization import Quantize
from fxcompress.recipes.recipe import recipe_of
from fxcompress.report.report import LayerNoise
from fxcompress.targets.catalog import resolve
from fxcompress.targets.target import Target

REPORTED = 8
"""Layers whose effect on the outputs is measured for a report; the signal-to-noise is that of all."""
REPORT_SAMPLES = 2


def attribution(
    program: Program,
    calibration: Iterable[Any],
    *,
    target: str | Target = "onnxruntime",
    samples: int = SAMPLES,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Fold and quantize a program wherever the target can, and measure what that does at each layer.

    Of a program that came quantized it is its own quantization that is measured.

    Args:
        program: as it was captured; it stays as it is.
        calibration: batches that can be read more than once.
        target: the runtime whose kernels and schemes are meant.
        samples: how many samples outputs are compared on.
        limit: how many layers are also quantized alone; None for all, see `analysis.sensitivity` for the
            cost.
        progress: called with the name of every step.

    Raises:
        NotSupported: nothing of the program can be quantized.
        InputError: calibration data that cannot be.
    """
    request = Request(
        recipe=recipe_of(None, Quantize(precision="full")),
        calibration=calibration,
        target=resolve(target),
        progress=progress,
    )
    journal = Journal(progress)
    start = journal.apply_all(request.recipe.before, program)
    deployed = journal.apply_all(request.recipe.after, start)
    if is_quantized(deployed):
        return _of_its_own(deployed, calibration, journal, samples, limit)
    made = quantized(request, deployed, Calibration(calibration, calibration), journal).variants
    if not made or made[0].reference is None:
        raise NotSupported("nothing of this program can be quantized: there is no error to attribute")
    with journal.step("rank-layers"):
        return sensitivity(made[0].reference, made[0].program, calibration, samples=samples, limit=limit)


def _of_its_own(
    program: Program, calibration: Iterable[Any], journal: Journal, samples: int, limit: int | None
) -> Sensitivity:
    """What the quantization that a model came with does to it; its weights are the rounded ones."""
    plain = program.copy()
    drop_quantizers(plain)
    with journal.step("rank-layers"):
        return sensitivity(plain, program, calibration, samples=samples, limit=limit)


def noise_of(variant: Variant | None, samples: Sequence[Batch], journal: Journal) -> tuple[LayerNoise, ...]:
    """Return the layers of a variant for the report, the worst first; none where it has no pairs."""
    if variant is None or variant.reference is None or not samples:
        return ()
    with journal.step("rank-layers"):
        found = attribute(variant.reference, variant.program, samples, samples=REPORT_SAMPLES, limit=REPORTED)
    return entries(found)


def entries(found: Sensitivity) -> tuple[LayerNoise, ...]:
    """The layers as a report holds them."""
    return tuple(
        LayerNoise(row.node, row.module, row.snr_db, row.own_db, row.alone, row.source)
        for row in found.layers
    )
