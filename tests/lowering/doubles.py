"""The same graph in double precision, by ONNX's reference implementation: what rounding hides shows there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


class MultiHeadAttention(OpRun):
    """ONNX Runtime's operator on `[N, S, H * D]`, without masks, as its documentation defines it."""

    op_domain = "com.microsoft"

    def _run(
        self, q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], *, num_heads: int, scale: float
    ) -> tuple[NDArray[Any]]:
        q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2) for x in (q, k, v))
        scores = scale * (q @ k.swapaxes(2, 3))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return (mixed.swapaxes(1, 2).reshape(mixed.shape[0], mixed.shape[2], -1),)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy all of whose tensors of floats, stored, declared and cast to, are doubles; attributes have no
    wider form.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for stored in copy.graph.initializer:
        _widen(stored)
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = DOUBLE
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = DOUBLE
    return copy


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == FLOAT:
        wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))


def assert_equal_in_double(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]
) -> None:
    """Both compute the same to twelve digits; to seven where a number is an attribute, which is single."""
    kinds = {attribute.type for node in after.graph.node for attribute in node.attribute}
    tolerance = 2.5e-7 if onnx.AttributeProto.FLOAT in kinds else 1e-12
    wide = {
        name: value.astype(np.float64) if value.dtype == np.float32 else value
        for name, value in feeds.items()
    }
    wanted, found = (
        ReferenceEvaluator(in_double(model), new_ops=[MultiHeadAttention]).run(None, wide)
        for model in (before, after)
    )
    assert len(wanted) == len(found)
    for one, other in zip(wanted, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance)
