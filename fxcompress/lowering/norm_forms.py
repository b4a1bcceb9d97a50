"""A hand-written RMS norm in the form that the runtime fuses into one kernel.

    Mul(x, Reciprocal(Sqrt(v)))  =>  Div(x, Sqrt(v))

torch exports `rsqrt` as Reciprocal of Sqrt; onnxruntime's SimplifiedLayerNormalization looks for the
division. The result differs by rounding only (one operation less).
"""

from __future__ import annotations

from typing import Any

from fxcompress.lowering.match import maker, only_read_by


def divide_by_root(graph: Any) -> int:
    """Apply the rule where the reciprocal root has one reader; returns how many products became divisions."""
    return sum(_divide(graph, node) for node in graph.nodes if node.op == "Mul")


def _divide(graph: Any, node: Any) -> bool:
    for position, factor in enumerate(node.inputs):
        reciprocal = maker(factor, "Reciprocal")
        if reciprocal is None or maker(reciprocal.inputs[0], "Sqrt") is None:
            continue
        if only_read_by(graph, factor, [node]) and len(factor.outputs) == 1:
            node.op, node.inputs = "Div", [node.inputs[1 - position], reciprocal.inputs[0]]
            return True
    return False
