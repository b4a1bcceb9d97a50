"""The ranges of activations for one `optimize` call; by default whichever of two rules leaves outputs closer.

Clipping rare values spends the 256 levels on the many, which the mean squared error of a tensor rewards; but
a few rare values may be what the next layers live on, as the outliers of transformers are. Nothing about a
tensor alone tells which. So both plans are made from one pass over the data, and a few samples of it decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from fxcompress.analysis.calibration import calibrate, calibrate_both
from fxcompress.analysis.output_error import gap
from fxcompress.api.request import Request
from fxcompress.graph import walk
from fxcompress.graph.execute import run_flat
from fxcompress.graph.program import Program
from fxcompress.graph.samples import pieces
from fxcompress.numerics.ranges import ESTIMATORS, Range
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.plan.quantization import Quantize, plan_quantization

AUTO = "auto"

CLIPPING = "mse"
"""The rule that is compared with the smallest and the largest value."""

CHUNK, CHUNKS = 8, 4
"""How many samples are compared: so many at once, and so many times."""


def measured_ranges(
    request: Request,
    program: Program,
    everything: Iterable[Any],
    again: Iterable[Any],
    observed: Sequence[str],
) -> dict[str, Range]:
    """The range of each tensor observed, by the rule that the options name.

    Args:
        everything: the calibration data, read once.
        again: what of it can be read any number of times.
        observed: node names.

    Raises:
        InputError: what :func:`~fxcompress.analysis.calibration.calibrate` refuses.
    """
    options = request.quantize or Quantize()
    if options.calibrator != AUTO:
        return calibrate(program, everything, observed, estimator=ESTIMATORS[options.calibrator])
    seen, clipped = calibrate_both(program, everything, observed, estimator=ESTIMATORS[CLIPPING])
    # The largest logit decides, and the error of all of them says little of it: outputs are not clipped.
    outputs = {value.name for value in walk.output_values(program)}
    clipped = {name: seen[name] if name in outputs else found for name, found in clipped.items()}
    samples = list(islice(pieces(program, again, CHUNK), CHUNKS))
    wanted = [run_flat(program, flat) for flat in samples]
    plain, other = (_error(request, program, ranges, samples, wanted) for ranges in (seen, clipped))
    return clipped if other < plain else seen


def _error(
    request: Request,
    program: Program,
    ranges: Mapping[str, Range],
    samples: Sequence[Sequence[Tensor]],
    wanted: Sequence[Sequence[Tensor]],
) -> float:
    """The squared error of the outputs with everything in int8 that can be."""
    plan = plan_quantization(program, ranges, request.target, request.quantize)
    quantized = QuantizeTensors(plan).run(program).program
    return sum(gap(exact, run_flat(quantized, flat)) for exact, flat in zip(wanted, samples, strict=True))
