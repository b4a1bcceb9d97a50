"""What cannot be done to a model that came quantized."""

from __future__ import annotations

from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import is_quantized


def refuse_removal(program: Program) -> None:
    """Refuse to remove anything of a model whose weights are integers already.

    Raises:
        InputError: the program carries fake quantization.
    """
    if is_quantized(program):
        raise InputError(
            "the model carries fake quantization: what its scales were trained for cannot be removed",
            hint="prune the float model first, prepare result.trainable.module for quantization-aware "
            "training, and pass what was trained",
        )


def refuse_requantization(program: Program) -> None:
    """Refuse to place quantizers beside those that a model came with.

    Raises:
        InputError: the program carries fake quantization.
    """
    if is_quantized(program):
        raise InputError(
            "the model carries fake quantization, whose scales are kept: quantize= would round its tensors "
            "twice",
            hint="leave quantize out, or pass the float model to have all of it decided here",
        )
