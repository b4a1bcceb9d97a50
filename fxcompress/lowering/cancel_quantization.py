"""Remove a quantization that undoes the dequantization right before it.

    QuantizeLinear(DequantizeLinear(q, s, z), s, z)  =>  q

Exact only when scale, zero point and integer type agree; a requantization to another scale stays.
"""

from __future__ import annotations

from typing import Any

from fxcompress.lowering.match import maker, redirect, same_constant


def cancel_quantization(graph: Any) -> int:
    """Apply the rule; returns how many Q nodes lost their readers."""
    cancelled = 0
    for node in [node for node in graph.nodes if node.op == "QuantizeLinear"]:
        before = maker(node.inputs[0], "DequantizeLinear")
        if before is not None and _undoes(before, node):
            cancelled += redirect(graph, node.outputs[0], before.inputs[0])
    return cancelled


def _undoes(before: Any, node: Any) -> bool:
    if len(before.inputs) != 3 or len(node.inputs) != 3:
        return False  # without a zero point the integer type of Q is not said
    scale = node.inputs[1]
    if scale.shape and before.attrs.get("axis", 1) != node.attrs.get("axis", 1):
        return False
    return all(
        same_constant(one, other) for one, other in zip(before.inputs[1:], node.inputs[1:], strict=True)
    )
