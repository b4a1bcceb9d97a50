"""Attention rows that may look at nothing come out as zeros, as in torch.

    m = Where(mask, 0, lowest float)                      m = Where(mask, 0, -inf)
    s = Softmax(Add(scores, m))                      =>   s = Softmax(Add(scores, m))
    y = Where(IsNaN(s), 0, s)                             y = Where(IsNaN(s), 0, s)

The exporter writes a boolean mask with the lowest finite number, and a fully masked row (a padded position
under a causal mask) then averages all values; torch, and the exporter's own guard against NaN, mean minus
infinity. (Seen with torch 2.13: zeros in torch, the mean of the values in onnxruntime.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from fxcompress.lowering.match import constant, maker

_ATTENTION = "scaled_dot_product"
"""Part of the name of every node that the exporter writes for an attention."""


def mask_with_infinity(graph: Any) -> int:
    """Apply the rule; returns how many masks changed."""
    changed = 0
    for node in [node for node in graph.nodes if node.op == "Where"]:
        for mask in _guarded_masks(node):
            lowest = mask.inputs[2]
            name = f"{mask.name}/infinity"
            mask.inputs = [*mask.inputs[:2], gs.Constant(name, np.full_like(lowest.values, -np.inf))]
            changed += 1
    return changed


def _guarded_masks(node: Any) -> list[Any]:
    """The masks of a softmax whose NaN the node turns into zeros; none if the node does something else.

    Only the exporter's own guard says what torch would do: a model that adds the lowest number and looks for
    NaN by itself gets the mean of the values from torch, and its node has another name.
    """
    if _ATTENTION not in node.name:
        return []
    test, softmax = maker(node.inputs[0], "IsNaN"), maker(node.inputs[2], "Softmax")
    if (
        test is None
        or softmax is None
        or test.inputs[0] is not node.inputs[2]
        or not _is(node.inputs[1], 0.0)
    ):
        return []
    total = maker(softmax.inputs[0], "Add")
    terms = [maker(term, "Where") for term in total.inputs] if total is not None else []
    return [term for term in terms if term is not None and _is_mask(term)]


def _is_mask(node: Any) -> bool:
    """Where(mask, 0, lowest), read by guarded attentions only (several may share one mask): another one would
    turn its rows that see nothing into NaN.
    """
    lowest = constant(node.inputs[2])
    if lowest is None or lowest.dtype.kind != "f" or not _is(node.inputs[1], 0.0):
        return False
    if not _is(node.inputs[2], float(np.finfo(lowest.dtype).min)):
        return False
    return all(_is_guarded(reader) for reader in node.outputs[0].outputs)


def _is_guarded(total: Any) -> bool:
    """Whether a sum is read by softmaxes alone, whose NaN something looks for."""
    if total.op != "Add":
        return False
    softmaxes = list(total.outputs[0].outputs)
    return bool(softmaxes) and all(
        node.op == "Softmax" and any(reader.op == "IsNaN" for reader in node.outputs[0].outputs)
        for node in softmaxes
    )


def _is(tensor: Any, number: float) -> bool:
    values = constant(tensor)
    return values is not None and values.size == 1 and float(values.item()) == number
