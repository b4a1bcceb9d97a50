"""A product of half floats that onnxruntime 1.31 opens without ending the process.

    MatMul(Transpose(x; 1, 0, 2), w[K, N])  =>  Squeeze(MatMul(Unsqueeze(Transpose(x; 1, 0, 2), 0), w), 0)

The runtime takes a transpose that moves the leading axis into the product after it (`FusedMatMul`,
`transBatchA`); with float16 and a matrix on the other side, its last optimisations then read what is not
there, and the process ends by a segmentation fault that nothing can catch. Batch-first recurrent layers are
written so. A leading axis of one stays in its place, and the transpose stays a node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from fxcompress.lowering.match import constant, maker


def part_from_transposes(graph: Any) -> int:
    """Apply the rule; returns how many products were given an axis."""
    return sum(_part(graph, node) for node in list(graph.nodes) if node.op == "MatMul")


def _part(graph: Any, node: Any) -> bool:
    if node.inputs[0].dtype != np.float16:
        return False
    ranks = [None if factor.shape is None else len(factor.shape) for factor in node.inputs]
    for place, factor in enumerate(node.inputs):
        if ranks[1 - place] in (1, 2) and _moves_the_leading_axis(factor):
            _lead(graph, node, place)
            return True
    return False


def _moves_the_leading_axis(factor: Any) -> bool:
    """Whether a factor is a transpose that hands the axis in front to the product, or one that is scaled."""
    while (scaling := maker(factor, "Mul") or maker(factor, "Div")) is not None:
        computed = [source for source in scaling.inputs if constant(source) is None]
        if len(computed) != 1:
            return False
        factor = computed[0]
    transpose = maker(factor, "Transpose")
    perm = [] if transpose is None else list(transpose.attrs.get("perm", []))
    return len(perm) > 2 and 0 in perm[-2:]


def _lead(graph: Any, node: Any, place: int) -> None:
    """Give the factor at a place an axis of one in front, and take it from the product."""
    factor, result, name = node.inputs[place], node.outputs[0], node.name
    axes = gs.Constant(f"{name}/axes", np.zeros(1, np.int64))
    led = gs.Variable(f"{name}/Unsqueeze", factor.dtype, _led(factor))
    product = gs.Variable(f"{name}/MatMul", result.dtype, _led(result))
    before = gs.Node("Unsqueeze", led.name, inputs=[factor, axes], outputs=[led])
    after = gs.Node("Squeeze", f"{name}/Squeeze", inputs=[product, axes], outputs=[result])
    node.inputs[place] = led
    node.outputs = [product]
    at = graph.nodes.index(node)
    graph.nodes.insert(at + 1, after)
    graph.nodes.insert(at, before)


def _led(tensor: Any) -> list[Any] | None:
    """The shape of a tensor with one in front; None where it is not known."""
    return None if tensor.shape is None else [1, *tensor.shape]
