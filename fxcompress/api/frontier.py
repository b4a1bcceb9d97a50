"""`max_drop` walked, in one of two ways.

Along the frontier of the cut (:func:`fastest_within`), for speed: its points go from the fastest to the most
accurate, and the first that keeps within `max_drop` is searched by halves. What an operator saves is its
price, what it costs is what its layer alone does to the outputs. (MobileNetV3-large, random weights, one
thread, outputs that may move by 5 %: the sum of squares predicts 0.054 where 0.048 is measured, in 4.28 ms;
by layers 4.89.)

By layers (:func:`walk`), for size, and where nothing has a price or no point keeps the bound: the worst one
layer, two, four, ... of the int8 variant are left in float until the bound holds, and the count is then
searched by halves, so that no more is given up than needed: about `2 log2(layers)` files are made and judged.
That knows what hurts, and not what it saves.

What was given up is said in the notes of the variant and, operator by operator, in its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fxcompress.analysis.sensitivity import LayerError, attribute
from fxcompress.api.candidates import Candidate
from fxcompress.api.variant import Batch, Tradeoff, Variant
from fxcompress.plan.quantization import gate_name

RANKING_SAMPLES = 4
NAMED = 6
"""Layers that a note names."""
GIVEN_UP = "left in float: the outputs would lose more than max_drop"

Judge = Callable[[Variant], tuple[Candidate, float]]
"""A variant lowered, and what it loses."""


@dataclass(frozen=True)
class Step:
    """A variant with some layers in float, lowered, and what it loses."""

    variant: Variant
    candidate: Candidate
    loss: float


def ranked_layers(full: Variant, samples: Sequence[Batch]) -> list[LayerError]:
    """The layers that can be left in float, the worst first, under their names in the float program.

    The gate of a self-gated activation is a tensor of its own in the quantized program alone.
    """
    if full.without is None or full.reference is None or not samples:
        return []
    known = {node.name: node.name for node in full.reference.graph.nodes}
    known |= {gate_name(name): name for name in known}
    ranked: dict[str, LayerError] = {}
    for layer in attribute(full.reference, full.program, samples, samples=RANKING_SAMPLES).layers:
        if layer.node in known:
            ranked.setdefault(known[layer.node], replace(layer, node=known[layer.node]))
    return list(ranked.values())


def fastest_within(
    points: Sequence[Tradeoff], known: Sequence[Step], max_drop: float, judge: Judge
) -> Step | None:
    """Return the fastest point of the frontier that loses at most `max_drop`; None where only float does.

    Args:
        points: from the fastest to the most accurate.
        known: variants that were judged before; their points are not made again.
        max_drop: the bound.
        judge: how a variant becomes a candidate, and what that loses.
    """
    judged = {step.variant.name: step for step in known}
    holding = (place for place, point in enumerate(points) if _holds(judged.get(point.variant), max_drop))
    # Before `low` all lose too much, from `high` on none does.
    low = 0
    high = next(holding, len(points))
    best = judged[points[high].variant] if high < len(points) else None
    while low < high:
        middle = (low + high) // 2
        step = judged.get(points[middle].variant) or _at(points[middle], points[0], judge)
        if step is not None and step.loss > max_drop:
            low = middle + 1
        else:
            best, high = step, middle
    return best


def _holds(step: Step | None, max_drop: float) -> bool:
    return step is not None and step.loss <= max_drop


def _at(point: Tradeoff, fastest: Tradeoff, judge: Judge) -> Step | None:
    """Make a point and judge it; None where nothing of it is in integers."""
    plan = point.plan()
    if not plan.kernels:
        return None
    made = point.make(plan)
    note = (
        f"to keep within max_drop, {len(fastest.operators - point.operators)} operators stay in float that "
        f"would be faster in integers: predicted {point.ms:.3g} ms, for the fastest cut {fastest.ms:.3g}"
    )
    named = replace(made, notes=(*made.notes, note))
    return Step(named, *judge(named))


def walk(full: Variant, ranked: Sequence[LayerError], max_drop: float, judge: Judge) -> Step | None:
    """Return the variant with the fewest layers in float that loses at most `max_drop`.

    Args:
        full: the variant that loses too much.
        ranked: its layers, the worst first; None comes back where there are none.
        max_drop: the bound.
        judge: how a variant becomes a candidate, and what that loses.
    """
    best: Step | None = None
    low, high, tried = 0, len(ranked), 1  # `low` layers in float lose too much, `high` do not
    while low + 1 < high:
        count = tried if best is None and tried < high else (low + high) // 2
        step = _leaving(full, ranked[:count], len(ranked), judge)
        if step is not None and step.loss > max_drop:
            low, tried = count, 2 * tried
        else:
            best, high = step, count
    return best


def _leaving(full: Variant, layers: Sequence[LayerError], among: int, judge: Judge) -> Step | None:
    """Make the variant without some layers and judge it; None where nothing is left in integers."""
    assert full.without is not None
    made = full.without(frozenset(layer.node for layer in layers))
    if made is None:
        return None
    places = ", ".join(layer.module or layer.node for layer in layers[:NAMED])
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    note = f"to keep within max_drop, {len(layers)} of {among} layers stay in float: {places}{more}"
    named = replace(made, name=f"{full.name}, {len(layers)} layers in float", notes=(*made.notes, note))
    return Step(named, *judge(named))
