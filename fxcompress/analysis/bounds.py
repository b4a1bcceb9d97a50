"""The values that a function can yield at all: what calibration need not find out.

A rectifier's range begins at zero, a hard-swish never goes below -0.375. A range that is estimated clips rare
values to spend its 256 levels on the many; at a bound there is nothing rare to clip, for values pile up
there. Layout and pooling repeat the bounds of what they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from fxcompress.graph import walk
from fxcompress.numerics.interval import Range
from fxcompress.ops.quantization import Kind, activations, rectifier_bounds, role

aten = torch.ops.aten
_INF = float("inf")

YIELDS: Mapping[Any, Range] = MappingProxyType(
    {
        aten.sigmoid.default: Range(0.0, 1.0),
        aten.hardsigmoid.default: Range(0.0, 1.0),
        aten.softmax.int: Range(0.0, 1.0),
        aten._softmax.default: Range(0.0, 1.0),
        aten.tanh.default: Range(-1.0, 1.0),
        aten.hardswish.default: Range(-0.375, _INF),
        aten.silu.default: Range(-0.27846455, _INF),
        aten.gelu.default: Range(-0.17004, _INF),
        aten.mish.default: Range(-0.30885, _INF),
        aten.softplus.default: Range(0.0, _INF),
        aten.exp.default: Range(0.0, _INF),
        aten.abs.default: Range(0.0, _INF),
    }
)
"""The smallest and largest value of a function, rounded outwards."""

_KEEPS = frozenset({Kind.LAYOUT, Kind.AVERAGE, Kind.GLOBAL_AVERAGE, Kind.PAD})


def bounds(node: fx.Node) -> Range:
    """Return the interval that a node's values lie in for any input; infinite where nothing bounds it."""
    row = role(node)
    if node.target in YIELDS:
        return YIELDS[node.target]
    if row is not None and row.kind is Kind.RECTIFY:
        found = rectifier_bounds(node)
        return Range(-_INF, _INF) if found is None else Range(*found)
    if row is not None and row.kind in _KEEPS and walk.is_tensor(node):
        sources = activations(node, row)
        if len(sources) == 1 and walk.is_tensor(sources[0]):
            before = bounds(sources[0])
            return _padded(node, before) if row.kind is Kind.PAD else before
    return Range(-_INF, _INF)


def _padded(node: fx.Node, inside: Range) -> Range:
    """What is padded with a number joins it; other modes repeat values of the inside."""
    if walk.argument(node, "mode", "constant") != "constant":
        return inside
    filled = walk.argument(node, "value") or 0.0
    if isinstance(filled, fx.Node):
        return Range(-_INF, _INF)
    return Range(min(inside.low, float(filled)), max(inside.high, float(filled)))


def bounded(node: fx.Node, found: Range, seen: Range) -> Range:
    """Keep an estimated range to the bounds of its function, and clip nothing at an end that has a bound.

    Args:
        node: what makes the values.
        found: the range that an estimator decided on.
        seen: the smallest and the largest value it has seen.
    """
    limit = bounds(node)
    low = found.low if limit.low == -_INF else max(limit.low, min(found.low, seen.low))
    high = found.high if limit.high == _INF else min(limit.high, max(found.high, seen.high))
    return Range(low, max(low, high))
