"""Remove nodes that return their input.

    Identity(x), Dropout(x), Cast(x, type of x), Transpose(x, 0 1 2 ...), Reshape(x, static shape of x)  =>  x

Declined where the result is a graph output (its name is a promise) unless the input can take that name over.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs
from onnx import helper

from fxcompress.lowering.match import integers, is_output, redirect


def remove_identities(graph: Any) -> int:
    """Apply the rule to every node; returns how many went."""
    removed = 0
    for node in list(graph.nodes):
        if node.inputs and node.outputs and _is_identity(node):
            removed += _bypass(graph, node)
    return removed


def _is_identity(node: Any) -> bool:
    source = node.inputs[0]
    if node.op == "Identity":
        return True
    if node.op == "Dropout":
        return len(node.outputs) == 1 and len(node.inputs) < 3
    if node.op == "Cast":
        return source.dtype is not None and _onnx_type(source.dtype) == _onnx_type(node.attrs["to"])
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        return perm is not None and list(perm) == list(range(len(perm)))
    if node.op == "Reshape":
        shape = integers(node, 1)
        return (
            shape is not None and source.shape is not None and list(source.shape) == shape and 0 not in shape
        )
    return False


def _onnx_type(dtype: Any) -> int:
    return dtype if isinstance(dtype, int) else int(helper.np_dtype_to_tensor_dtype(dtype))


def _bypass(graph: Any, node: Any) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    if not is_output(graph, result):
        redirect(graph, result, source)
        node.outputs = []
        return True
    # the maker of the source takes the output over, and with it the output's name
    if isinstance(source, gs.Constant) or not source.inputs or is_output(graph, source):
        return False
    above = source.inputs[0]
    node.outputs = []
    above.outputs = [result if one is source else one for one in above.outputs]
    redirect(graph, source, result)
    return True
