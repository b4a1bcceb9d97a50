"""The opset of an artefact: as asked, or the exporter's default, within what can be written and read.

torch 2.13 writes opset 20 and IR 10 by default and has operators from opset 18 on; asked for less, it stays
at 18 without an error. Older opsets are therefore reached by onnx's converter, which knows most operators.
"""

from __future__ import annotations

import onnx
import onnxruntime as ort
from onnx import version_converter

from fxcompress.errors import InputError, LoweringError
from fxcompress.lowering.decompose import EXPORTED
from fxcompress.runtime.versions import newest_ir, newest_opset

OLDEST = 13
"""Per-channel Q/DQ came with opset 13: below it nothing quantized can be written."""
DEFAULT = 20


def choose_opset(asked: int | None) -> int:
    """The opset to write: as asked, or the default where the runtime knows it.

    Raises:
        InputError: the asked opset is older than can be written or newer than the runtime reads.
    """
    newest = newest_opset()
    if asked is None:
        return min(DEFAULT, newest)
    if type(asked) is not int or not OLDEST <= asked <= newest:
        raise InputError(
            f"opset {asked!r} cannot be written: onnxruntime {ort.__version__} reads opsets up to {newest}, "
            f"and below {OLDEST} there is no per-channel quantization",
            hint=f"ask for an opset from {OLDEST} to {newest}, or leave it out for {min(DEFAULT, newest)}",
        )
    return asked


def convert_down(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at an opset below what the exporter writes, if every operator has an older form.

    Raises:
        LoweringError: some operator has none.
    """
    try:
        converted = version_converter.convert_version(model, opset)
        onnx.checker.check_model(converted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise LoweringError(
            f"the model cannot be written in opset {opset}: {str(error).splitlines()[0]}",
            hint=f"ask for opset {EXPORTED} or newer",
        ) from error
    return converted


def negotiate_ir(model: onnx.ModelProto) -> None:
    """Lower the IR version to what the installed runtime reads; the format of our models is the same in all
    of them.
    """
    model.ir_version = min(model.ir_version, newest_ir())
