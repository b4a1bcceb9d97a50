"""Layers that calibration data never reached: a range of nothing but zeros says nothing about what will come.

An expert that no sample chose, or a branch that a gate kept at zero, has an input of zeros. Quantized by that
range, it would round to zero whatever arrives later; so it stays in float, and the plan says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx

from fxcompress.numerics.ranges import Range
from fxcompress.ops.quantization import activations, role
from fxcompress.plan.placement import Placement

UNREACHED = "its input was zero in all of the calibration data, which says nothing about what will come"


def reached(
    placement: Placement,
    nodes: Mapping[str, fx.Node],
    ranges: Mapping[str, Range],
    again: Callable[[tuple[str, ...]], Placement],
) -> Placement:
    """Return the placement, or, where contractions were never reached, one that leaves them in float.

    `again` places once more without the operators given. Where that needs ranges that were not measured, the
    placement stays.
    """
    idle = tuple(name for name in placement.contractions if _is_idle(nodes[name], placement, ranges))
    if not idle:
        return placement
    spared = again(idle)
    if not set(spared.observed()) <= set(ranges):
        return placement
    spared.declined.update(dict.fromkeys(idle, UNREACHED))
    return spared


def _is_idle(node: fx.Node, placement: Placement, ranges: Mapping[str, Range]) -> bool:
    row = role(node)
    assert row is not None
    owner = placement.owner_read(activations(node, row)[0])
    seen = None if owner is None else ranges.get(owner)
    return seen is not None and seen.low == seen.high == 0.0
