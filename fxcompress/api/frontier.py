"""`max_drop` walked: as many layers in integers as the bound allows, the ones that hurt most left in float.

The layers of the int8 variant are ranked by what each alone does to the outputs. Where none of the variants
keeps within `max_drop`, the worst one layer, two, four, ... are left in float until one does, and the count
is then searched by halves, so that no more is given up than needed: about `2 log2(layers)` files are made and
judged. What was given up is said in the notes of the variant and, layer by layer, in its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fxcompress.analysis.sensitivity import LayerError, attribute
from fxcompress.api.candidates import Candidate
from fxcompress.api.variant import Batch, Variant
from fxcompress.graph.program import Program
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import gate_name

RANKING_SAMPLES = 4
NAMED = 6
"""Layers that a note names."""
GIVEN_UP = "left in float: the outputs would lose more than max_drop"

Lower = Callable[[Variant], Candidate]
Loss = Callable[[Candidate], float]


@dataclass(frozen=True)
class Step:
    """A variant with some layers in float, lowered, and what it loses."""

    variant: Variant
    candidate: Candidate
    loss: float


def walk(
    full: Variant, samples: Sequence[Batch], max_drop: float, journal: Journal, judge: tuple[Lower, Loss]
) -> Step | None:
    """Return the variant with the fewest layers in float that loses at most `max_drop`.

    Args:
        full: the variant that loses too much; None comes back where it cannot be made more careful.
        samples: flat calibration inputs that layers are ranked on.
        max_drop: the bound.
        journal: the log.
        judge: how a variant becomes a candidate, and what a candidate loses.
    """
    if full.without is None or full.reference is None or not samples:
        return None
    with journal.step("rank-layers"):
        ranked = _ranked(full, full.reference, samples)
    best: Step | None = None
    low, high, tried = 0, len(ranked), 1  # `low` layers in float lose too much, `high` do not
    while low + 1 < high:
        count = tried if best is None and tried < high else (low + high) // 2
        step = _leaving(full, ranked[:count], len(ranked), journal, judge)
        if step is not None and step.loss > max_drop:
            low, tried = count, 2 * tried
        else:
            best, high = step, count
    return best


def _ranked(full: Variant, reference: Program, samples: Sequence[Batch]) -> list[LayerError]:
    """The layers that can be left in float, the worst first, under their names in the float program.

    The gate of a self-gated activation is a tensor of its own in the quantized program alone.
    """
    known = {node.name: node.name for node in reference.graph.nodes}
    known |= {gate_name(name): name for name in known}
    ranked: dict[str, LayerError] = {}
    for layer in attribute(reference, full.program, samples, samples=RANKING_SAMPLES).layers:
        if layer.node in known:
            ranked.setdefault(known[layer.node], replace(layer, node=known[layer.node]))
    return list(ranked.values())


def _leaving(
    full: Variant,
    layers: Sequence[LayerError],
    among: int,
    journal: Journal,
    judge: tuple[Lower, Loss],
) -> Step | None:
    """Make the variant without some layers and judge it; None where nothing is left in integers."""
    lower, loss = judge
    assert full.without is not None
    made = full.without(frozenset(layer.node for layer in layers))
    if made is None:
        return None
    places = ", ".join(layer.module or layer.node for layer in layers[:NAMED])
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    note = f"to keep within max_drop, {len(layers)} of {among} layers stay in float: {places}{more}"
    named = replace(made, name=f"{full.name}, {len(layers)} layers in float", notes=(*made.notes, note))
    candidate = lower(named)
    with journal.step(f"judge-{named.name}"):
        return Step(named, candidate, loss(candidate))
