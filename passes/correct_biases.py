"""Take the mean error that quantization leaves in each channel out of the bias.

    conv(x_dq, w_dq, b_dq)  =>  conv(x_dq, w_dq, b_dq + mean(float output - quantized output))

Rounded weights and clamped activations shift the mean of a layer's outputs, and the shift adds up from layer
to layer. An int32 bias stays one, in its own units; nothing is added to the graph.

The empirical form of Nagel et al., "Data-free quantization through weight equalization and bias correction"
(2019), section 4.2; sequential and judged on held-out samples as `passes.quantized_corrections` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fxcompress.analysis.quantized_sites import QuantizedSite
from fxcompress.graph.program import Program
from fxcompress.numerics.least_squares import Moments
from fxcompress.passes.quantized_corrections import (
    NO_GAIN,
    Corrected,
    Data,
    chosen,
    corrected,
    share_left,
    shift_bias,
)

MEMORY = 128 * 2**20
"""Bytes of activations: a mean needs fewer samples than a fit of all weights."""


@dataclass(frozen=True)
class CorrectBiases:
    """Correct the biases of a quantized program.

    Args:
        reference: the float program that was quantized.
        batches: calibration data that can be read more than once; labels are ignored.
        memory: bytes of activations that may be held at once.
    """

    reference: Program = field(repr=False)
    batches: Iterable[Any] = field(repr=False)
    memory: int = MEMORY
    name: ClassVar[str] = "correct-biases"

    def run(self, program: Program) -> Corrected:
        """Return the corrected program, or the one given where its outputs do not come closer.

        Raises:
            InputError: unusable calibration data, or a layer that yields NaN or infinities on it.
        """
        return corrected(Data(self.reference, self.batches, self.memory), program, _correct, inputs=False)


def _correct(program: Program, site: QuantizedSite, fitted: Moments, judged: Moments) -> float | str:
    """Correct the bias of one layer in place, or say why not."""
    if site.bias is None:
        return "it has no bias of its own"
    fit = chosen(fitted, judged, [torch.zeros_like(fitted.xr)], intercept=True)
    changed = shift_bias(program, site.bias, fit.bias.reshape(-1))
    return share_left(judged, fit) if changed else NO_GAIN
