"""Store weights the way their readers want them: no Transpose of a stored tensor is left to the runtime.

A linear on more than two dimensions is exported as `MatMul(x, Transpose(W))`. For float weights the runtime
would fold the transpose at load time; for quantized ones it would not, and `MatMulIntegerToFloat`, which
needs the DequantizeLinear right at the MatMul, would not fuse.

    Transpose(W)                                   =>  W'
    Transpose(DequantizeLinear(W, s, z; axis=a))   =>  DequantizeLinear(W', s, z; axis=perm^-1(a))

Declined where something else reads the same weight (a tied embedding): a second copy would cost file size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fxcompress.lowering.match import constant, is_output, only_read_by, redirect


def fold_weight_transposes(graph: Any) -> int:
    """Apply both rules where the stored tensor has no other reader; returns how many weights were turned."""
    turned = 0
    for node in [node for node in graph.nodes if node.op == "DequantizeLinear"]:
        turned += _turn_quantized(graph, node)
    for tensor in [tensor for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant)]:
        turned += _turn_stored(graph, tensor)
    return turned


def _turn_stored(graph: Any, tensor: Any) -> bool:
    """Transpose(W) => W'."""
    perm = _common_perm(graph, tensor)
    if perm is None:
        return False
    transposes = list(tensor.outputs)
    tensor.values = _transposed(tensor, perm)
    for transpose in transposes:
        redirect(graph, transpose.outputs[0], tensor)
        transpose.inputs = []
    return True


def _turn_quantized(graph: Any, node: Any) -> bool:
    """Transpose(DequantizeLinear(W)) => DequantizeLinear(W')."""
    stored, result = node.inputs[0], node.outputs[0]
    if not isinstance(stored, gs.Constant) or not only_read_by(graph, stored, [node]):
        return False
    perm = _common_perm(graph, result)
    if perm is None:
        return False
    stored.values = _transposed(stored, perm)
    scale = constant(node.inputs[1])
    if scale is not None and scale.ndim == 1:
        node.attrs["axis"] = perm.index(int(node.attrs.get("axis", 1)) % len(perm))
    result.shape = stored.shape
    for transpose in list(result.outputs):
        redirect(graph, transpose.outputs[0], result)
        transpose.inputs = []
    return True


def _common_perm(graph: Any, tensor: Any) -> list[int] | None:
    """The permutation that every reader of a tensor applies to it, if all are the same Transpose."""
    readers = list(tensor.outputs)
    if not readers or is_output(graph, tensor) or any(node.op != "Transpose" for node in readers):
        return None
    if any(is_output(graph, node.outputs[0]) for node in readers):
        return None
    rank = len(tensor.shape)
    perms = {tuple(node.attrs.get("perm", range(rank)[::-1])) for node in readers}
    return list(perms.pop()) if len(perms) == 1 else None


def _transposed(tensor: Any, perm: list[int]) -> NDArray[Any]:
    return np.ascontiguousarray(np.transpose(tensor.values, perm))
