"""The opset of an artefact: as asked, or the exporter's default, within what can be written and read.

torch 2.13 writes opset 20 and IR 10 by default and has operators from opset 18 on; asked for less, it stays
at 18 without an error. Older opsets are therefore reached by onnx's converter, which knows most operators.
"""

from __future__ import annotations

import re

import onnx
import onnxruntime as ort
from onnx import version_converter

from fxcompress.errors import InputError, LoweringError, first_line
from fxcompress.lowering.decompose import EXPORTED
from fxcompress.runtime.versions import newest_ir, newest_opset

OLDEST = 14
"""onnx's converter has no way from opset 14 to 13 for Relu, Add and most arithmetic."""
DEFAULT = 20

_FAILURES = (
    *(RuntimeError, ValueError, onnx.checker.ValidationError),
    *(version_converter.ConvertError, onnx.shape_inference.InferenceError),
)
"""What the converter and the checker raise; they share no base class."""

_MISSING = re.compile(r"No (?:Adapter From Version \S+ for|Previous Version of) (\w+)")
"""How the converter's assertions say of which operator it knows no older form."""


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
            f"and below {OLDEST} onnx's converter does not reach",
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
    except _FAILURES as error:
        missing = _MISSING.search(str(error))
        reason = (
            first_line(error) if missing is None else f"onnx's converter knows no older form of {missing[1]}"
        )
        raise LoweringError(
            f"the model cannot be written in opset {opset}: {reason}",
            hint=f"ask for opset {EXPORTED} or newer",
        ) from error
    return converted


def negotiate_ir(model: onnx.ModelProto) -> None:
    """Lower the IR version to what the installed runtime reads; the format of our models is the same in all
    of them.
    """
    model.ir_version = min(model.ir_version, newest_ir())
