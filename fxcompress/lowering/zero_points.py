"""Zero points as stored integers.

    DequantizeLinear(x, scale, Cast<to=int8>(zeros))  =>  DequantizeLinear(x, scale, zeros_int8)

torch keeps zero points as int64 and the exporter writes a Cast, which its optimizer computes up to 64 KiB:
the 8,193rd channel brings it back, and with it a file that no rule for quantized kernels looks through.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs
from onnx import helper

from fxcompress.lowering.match import constant, maker

_ZERO_POINT = 2


def store_zero_points(graph: Any) -> int:
    """Apply the rule; returns how many operators changed."""
    changed = 0
    stored: dict[int, Any] = {}
    for node in graph.nodes:
        if node.op not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) <= _ZERO_POINT:
            continue
        cast = maker(node.inputs[_ZERO_POINT], "Cast")
        values = None if cast is None else constant(cast.inputs[0])
        if cast is None or values is None:
            continue
        if id(cast) not in stored:
            dtype = helper.tensor_dtype_to_np_dtype(cast.attrs["to"])
            stored[id(cast)] = gs.Constant(f"{cast.name}/stored", values.astype(dtype))
        node.inputs[_ZERO_POINT] = stored[id(cast)]
        changed += 1
    return changed
