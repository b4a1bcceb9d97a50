"""The guard of an attention against rows that may look at nothing, where it costs least.

    s = Softmax(Add(scores, m)); y = MatMul(Where(IsNaN(s), 0, s), v)
        =>  y = MatMul(s, v)                                      m stored, and every row sees something
        =>  y = Where(seen, MatMul(s, v), 0)                      m = Where(mask, 0, -inf)
            seen = Cast(ReduceSum(Cast(mask), [-1]))              once for all that read the mask

The exporter tests every score of every head. A row that sees nothing is NaN after the softmax and stays in
its row of the product, so that testing the rows of the mask and choosing rows of the product is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fxcompress.lowering.match import constant, maker, only_read_by, redirect


@dataclass(frozen=True)
class _Guard:
    """`node` turns the NaN of `weights` into zeros; `mask` is what was added before the softmax."""

    node: Any
    weights: Any
    mask: Any


def lighten_guards(graph: Any) -> int:
    """Apply both rules; returns how many guards changed."""
    seen: dict[int, Any] = {}
    changed = 0
    for node in [node for node in graph.nodes if node.op == "Where"]:
        guard = _guard(graph, node)
        if guard is None:
            continue
        if _every_row_sees(guard.mask):
            changed += redirect(graph, node.outputs[0], guard.weights)
        else:
            changed += _move(graph, guard, seen)
    return changed


def _guard(graph: Any, node: Any) -> _Guard | None:
    test, softmax = maker(node.inputs[0], "IsNaN"), maker(node.inputs[2], "Softmax")
    zero = constant(node.inputs[1])
    if test is None or softmax is None or zero is None or zero.size != 1 or float(zero.item()) != 0.0:
        return None
    weights = node.inputs[2]
    rank = len(weights.shape or [])
    if test.inputs[0] is not weights or rank < 2 or softmax.attrs.get("axis", -1) not in (-1, rank - 1):
        return None
    total = maker(softmax.inputs[0], "Add")
    terms = list(total.inputs) if total is not None else []
    masks = [term for term in terms if _is_mask(term)]
    products = [term for term in terms if _is_product(term)]
    if len(masks) != 1 or len(products) != 1 or not only_read_by(graph, weights, [test, node]):
        return None
    return _Guard(node, weights, masks[0])


def _is_product(term: Any) -> bool:
    """Whether a summand is a product of queries and keys, perhaps scaled: it hides nothing by itself."""
    scaled = maker(term, "Mul")
    if scaled is not None:
        numbers = [constant(factor) for factor in scaled.inputs]
        others = [x for x, number in zip(scaled.inputs, numbers, strict=True) if number is None]
        finite = all(number is None or np.isfinite(number).all() for number in numbers)
        return len(others) == 1 and finite and maker(others[0], "MatMul") is not None
    return maker(term, "MatMul") is not None


def _is_mask(term: Any) -> bool:
    """Whether a summand is stored, or zero and minus infinity by a computed mask."""
    if constant(term) is not None:
        return True
    where = maker(term, "Where")
    if where is None or where.inputs[0].dtype != np.bool_:
        return False
    shown, hidden = constant(where.inputs[1]), constant(where.inputs[2])
    return bool(
        shown is not None
        and hidden is not None
        and shown.size == hidden.size == 1
        and float(shown.item()) == 0.0
        and float(hidden.item()) == -np.inf
    )


def _every_row_sees(mask: Any) -> bool:
    """Whether a mask is stored and hides no row from everything."""
    stored = constant(mask)
    if stored is None or stored.ndim < 1 or stored.dtype.kind != "f":
        return False
    return bool((stored > np.finfo(stored.dtype).min).any(-1).all())


def _move(graph: Any, guard: _Guard, seen: dict[int, Any]) -> bool:
    """Choose rows of the product instead of scores."""
    where = maker(guard.mask, "Where")
    readers = list(guard.node.outputs[0].outputs)
    products = [node for node in readers if node.op == "MatMul" and node.inputs[0] is guard.node.outputs[0]]
    if where is None or len(products) != 1 or not only_read_by(graph, guard.node.outputs[0], products):
        return False
    (product,) = products
    if id(where) not in seen:
        seen[id(where)] = _rows_that_see(graph, where)
    result, name = product.outputs[0], product.name
    unguarded = gs.Variable(f"{name}/unguarded", result.dtype, result.shape)
    product.name, product.outputs = f"{name}/unguarded", [unguarded]
    product.inputs = [guard.weights, product.inputs[1]]
    chosen = gs.Node("Where", name, inputs=[seen[id(where)], unguarded, guard.node.inputs[1]])
    chosen.outputs = [result]
    graph.nodes.insert(graph.nodes.index(product) + 1, chosen)
    return True


def _rows_that_see(graph: Any, where: Any) -> Any:
    """For every row of a mask whether it shows anything, the last dimension being one."""
    mask, name = where.inputs[0], where.name
    steps: tuple[tuple[str, dict[str, int], Any, list[Any]], ...] = (
        ("numbers", {"to": onnx.TensorProto.FLOAT}, np.float32, []),
        ("count", {"keepdims": 1}, np.float32, [gs.Constant(f"{name}/axis", np.array([-1], np.int64))]),
        ("seen", {"to": onnx.TensorProto.BOOL}, np.bool_, []),
    )
    place, tensor = graph.nodes.index(where) + 1, mask
    for offset, (label, attributes, dtype, more) in enumerate(steps):
        made = gs.Variable(f"{name}/{label}", dtype)
        kind = "ReduceSum" if more else "Cast"
        node = gs.Node(kind, f"{name}/{label}", dict(attributes), [tensor, *more], [made])
        graph.nodes.insert(place + offset, node)
        tensor = made
    return tensor
