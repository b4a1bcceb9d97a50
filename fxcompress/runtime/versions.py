"""Which opset and IR version the installed runtime reads, found by asking it.

A model of one Identity node is opened at each version, newest first. (Facts of onnxruntime 1.31: opset 26 and
IR 13, while onnx 1.23 itself writes up to opset 28 and IR 14.)
"""

from __future__ import annotations

from functools import cache

import onnx
from onnx import TensorProto, helper

from fxcompress.runtime.session import SessionError, open_session

_OLDEST_OPSET, _OLDEST_IR = 13, 7


@cache
def newest_opset() -> int:
    """The newest opset of the standard domain that both onnx and onnxruntime know, as installed."""
    known = onnx.defs.onnx_opset_version()
    return next(opset for opset in range(known, _OLDEST_OPSET - 1, -1) if _opens(opset, _OLDEST_IR))


@cache
def newest_ir() -> int:
    """The newest IR version that both onnx and onnxruntime know, as installed."""
    return next(version for version in range(onnx.IR_VERSION, 0, -1) if _opens(_OLDEST_OPSET, version))


def _opens(opset: int, ir_version: int) -> bool:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        open_session(model)
    except SessionError:
        return False
    return True
