"""Operators of ONNX and of ONNX Runtime that no PyTorch operator is translated to, as operators of our own.

They stand in a program between `runtime_forms` and the exporter and nowhere else: they have sizes and types
and a translation, and compute nothing.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch import Tensor
from torch.library import Library, register_fake
from torch.onnx._internal.exporter import _core
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fxcompress.errors import LoweringError

MICROSOFT = "com.microsoft"

_library = Library("fxcompress_lowering", "DEF")
_library.define("dynamic_quantize(Tensor x) -> (Tensor, Tensor, Tensor)")
_library.define("matmul_integer(Tensor x, Tensor weight, Tensor x_zero_point) -> Tensor")
_library.define(
    "matmul_nbits(Tensor x, Tensor packed, Tensor scales, Tensor? bias, int outputs, int inputs, int bits,"
    " int block, int accuracy) -> Tensor"
)
operators = torch.ops.fxcompress_lowering


def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(()), x.new_empty((), dtype=torch.uint8)


def _matmul_integer(x: Tensor, weight: Tensor, x_zero_point: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty((*x.shape[:-1], weight.shape[-1]), dtype=torch.int32)


def _matmul_nbits(  # noqa: PLR0913 - the operator's own arguments
    x: Tensor,
    packed: Tensor,  # noqa: ARG001
    scales: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    outputs: int,
    inputs: int,  # noqa: ARG001
    bits: int,  # noqa: ARG001
    block: int,  # noqa: ARG001
    accuracy: int,  # noqa: ARG001
) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


register_fake("fxcompress_lowering::dynamic_quantize", _dynamic_quantize, lib=_library)
register_fake("fxcompress_lowering::matmul_integer", _matmul_integer, lib=_library)
register_fake("fxcompress_lowering::matmul_nbits", _matmul_nbits, lib=_library)


def register(registry: ONNXRegistry) -> None:
    """Teach the exporter what the operators are in ONNX."""
    registry.register_op(operators.dynamic_quantize.default, _onnx_dynamic_quantize)
    registry.register_op(operators.matmul_integer.default, _onnx_matmul_integer)
    registry.register_op(operators.matmul_nbits.default, _onnx_matmul_nbits)


def _onnx_dynamic_quantize(x: Any) -> Any:
    return op.DynamicQuantizeLinear(x)


def _onnx_matmul_integer(x: Any, weight: Any, x_zero_point: Any) -> Any:
    return op.MatMulInteger(x, weight, x_zero_point)


def _onnx_matmul_nbits(  # noqa: PLR0913 - the operator's own arguments
    x: Any,
    packed: Any,
    scales: Any,
    bias: Any,
    outputs: int,
    inputs: int,
    bits: int,
    block: int,
    accuracy: int,
) -> Any:
    """A node made by hand in the exporter's trace: onnx has no schema of the runtime's operators."""
    tracer = _core.current_tracer
    if tracer is None:
        raise LoweringError("matmul_nbits can be translated inside an export only")
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": accuracy}
    node = ir.Node(
        MICROSOFT,
        "MatMulNBits",
        inputs=[x, packed, scales] if bias is None else [x, packed, scales, None, None, bias],
        attributes=ir.convenience.convert_attributes(attributes),
        version=1,
    )
    node.outputs[0].dtype = x.dtype
    tracer.nodes.append(node)
    return node.outputs[0]
