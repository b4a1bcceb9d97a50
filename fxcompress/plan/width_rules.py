"""Which widths a group may take: alignment, floors, and the nearest to a share that is fixed by hand."""

from __future__ import annotations

import math

from fxcompress.analysis.groups import Analysis, Group, Member
from fxcompress.axes.positions import occurrences
from fxcompress.graph import walk
from fxcompress.numerics.saliency import Scores
from fxcompress.ops.cost import MACS
from fxcompress.plan.budget import Candidate
from fxcompress.plan.prune import Prune


def contracted(analysis: Analysis) -> frozenset[str]:
    """Names of the stored tensors that an operator multiplies with: their widths are what kernels block."""
    return frozenset(
        str(source.target)
        for node in analysis.program.graph.nodes
        if node.target in MACS
        for source in node.all_input_nodes
        if source.op == "get_attr" and len(walk.hint_shape(source)) > 1
    )


def width_step(group: Group, block: int, weights: frozenset[str]) -> int:
    """The number of indices in which a group should step so that tensors stay multiples of the block.

    Alignment is wanted of the tensors: an index that stands for many positions (a head of width 64) may step
    more finely. Where a group stands for several counts of positions in several weights, the step is the
    least common multiple of what each wants; a combination by maximum misses one of them.
    """
    members = [member for member in group.members if member.tensor in weights]
    counts = {positions for member in members for positions in _positions(member, group)}
    return math.lcm(*(block // math.gcd(block, count) for count in counts or {group.positions}))


def _positions(member: Member, group: Group) -> list[int]:
    """How many positions of one stored dimension go with an index, by occurrence."""
    return [int((labels == 0).sum()) for labels in occurrences(member.expression, group.axis)]


def candidate(group: Group, scores: Scores, step: int, options: Prune) -> Candidate:
    """A group with its floor (never zero, at most `max_ratio` gone) and its top (`min_ratio` gone)."""
    removable = int(group.size * options.max_ratio + 1e-9)
    # A deviation over a single position is no number.
    least = max(options.min_width, 2 if group.statistics else 1, group.size - removable)
    least = min(group.size, least)
    top = max(least, math.floor(group.size * (1 - options.min_ratio) + 1e-9))
    if top < group.size and top // step * step >= least:
        top = top // step * step
    return Candidate(group.name, scores, step, least, top)


TOLERATED = 0.1
"""How far, as a share of the group, alignment may move a width that was asked for by hand."""


def fixed_width(share: float, item: Candidate, statistics: bool) -> tuple[int, int]:
    """The width that removes a stated share, and the multiple that it is of; never zero.

    The nearest multiple of the step is taken, or of a finer rung (8, 4, 1) where that is far off.
    """
    wanted, least = item.size * (1 - share), min(item.size, 2 if statistics else 1)
    for rung in [item.step, *(rung for rung in (8, 4, 1) if rung < item.step)]:
        below = int(wanted // rung) * rung
        near = (below, below + rung, item.size, *([least] if rung == 1 else []))
        options = [width for width in near if least <= width <= item.size]
        width = min(options, key=lambda option: (abs(option - wanted), option))
        if abs(width - wanted) <= TOLERATED * item.size or rung == 1:
            return width, rung
    return item.size, item.step
