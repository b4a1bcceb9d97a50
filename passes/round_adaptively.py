"""Round each stored weight up or down, whichever brings the layer's outputs closer to the float layer's.

    conv(x_dq, dequantize(W_int8), b)  =>  conv(x_dq, dequantize(W_int8 + moves), b + mean), moves in -1, 0, 1

Only the two integers around the float weight are considered: scales, ranges and operators stay as they are.
A bias, where there is one, takes the mean of what is then lacking.

Nagel et al., "Up or down? Adaptive rounding for post-training quantization" (2020); how the problem is solved
here is in `numerics.rounding`, how samples are split in `passes.quantized_corrections`. The budget of a layer
is `steps` moves per output, `numerics.rounding.WORK` multiply-adds and `seconds`, whichever ends first; where
the seconds do, the result depends on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fxcompress.analysis.contraction import Form
from fxcompress.analysis.quantized_sites import QuantizedSite, Stored
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.least_squares import Moments
from fxcompress.numerics.rounding import STEPS, Budget, descend, other_neighbours
from fxcompress.passes.quantized_corrections import (
    MEMORY,
    NO_GAIN,
    Corrected,
    Data,
    chosen,
    corrected,
    share_left,
    shift_bias,
)


@dataclass(frozen=True)
class RoundAdaptively:
    """Choose the rounding of the int8 weights of a quantized program.

    Args:
        reference: the float program that was quantized.
        batches: calibration data that can be read more than once; labels are ignored.
        memory: bytes of activations that may be held at once.
        biases: whether biases may take the mean of what is then lacking.
        steps: moves per output of a layer.
        seconds: of one layer's descent.
    """

    reference: Program = field(repr=False)
    batches: Iterable[Any] = field(repr=False)
    memory: int = MEMORY
    biases: bool = True
    steps: int = STEPS
    seconds: float = 30.0
    name: ClassVar[str] = "round-adaptively"

    def run(self, program: Program) -> Corrected:
        """Return the program with better weights, or the one given where its outputs do not come closer.

        Raises:
            InputError: unusable calibration data, or a layer that yields NaN or infinities on it.
        """
        fix = partial(_round, self)
        return corrected(Data(self.reference, self.batches, self.memory), program, fix, inputs=True)


def _round(
    options: RoundAdaptively,
    program: Program,
    site: QuantizedSite,
    fitted: Moments,
    judged: Moments,
) -> float | str:
    """Move the weights of one layer in place, or say why not."""
    if site.weight is None or site.weight.scales is None:
        return "its weight is stored as floats, or read by others"
    moves, unit = _moves(options.reference, program, site.form, site.weight)
    intercept = options.biases and site.bias is not None
    budget = Budget(options.steps, seconds=options.seconds)
    change = descend(fitted, moves * unit, intercept=intercept, budget=budget)
    fit = chosen(fitted, judged, [torch.zeros_like(change), change], intercept=intercept)
    stored = walk.tensor(program, site.weight.node)
    whole = site.form.stored((fit.weight / unit).round(), stored)
    moved = stored + whole.to(stored.dtype)
    edit.set_tensor(program, str(site.weight.node.target), moved)
    shifted = intercept and _shifted(program, site, fit.bias.reshape(-1))
    return share_left(judged, fit) if shifted or not torch.equal(moved, stored) else NO_GAIN


def _shifted(program: Program, site: QuantizedSite, shift: Tensor) -> bool:
    return site.bias is not None and shift_bias(program, site.bias, shift)


def _moves(reference: Program, program: Program, form: Form, weight: Stored) -> tuple[Tensor, Tensor]:
    """By how many units each weight may move, and the units, both `[groups, inputs, outputs]`."""
    exact = walk.tensor(reference, form.weight).detach().double()
    stored = walk.tensor(program, weight.node)
    units = weight.units(exact).expand(exact.shape)
    limit = int(stored.abs().max())
    moves = other_neighbours(exact / units, stored.double(), limit)
    return form.matrix(moves), form.matrix(units)
