"""How much of a program pruning can reach, and what keeps the rest.

A parameter (or a multiply-accumulate) is within reach when at least one of its positions lies on an axis that
may shrink: it goes with one index or another. What is out of reach is charged to the frozen axes on which it
lies, to each the part that freeing this axis alone would bring within reach.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from fxcompress.analysis.cost import collect
from fxcompress.analysis.groups import Analysis, Member, axis_name, member_of
from fxcompress.axes.expression import Axis, leaves
from fxcompress.axes.positions import width
from fxcompress.graph import walk
from fxcompress.ops.cost import Term

UNREMARKABLE = frozenset({"a kernel", "a single position"})
"""Reasons that say nothing a reader does not know: no axis of this kind is ever pruned."""


@dataclass(frozen=True)
class Reach:
    """A cost and how much of it pruning can reach.

    Args:
        total: the whole cost.
        prunable: what lies on at least one axis that may shrink.
        removable: what goes when every group shrinks to one index.
    """

    total: float
    prunable: float
    removable: float

    @property
    def share(self) -> float:
        """The prunable share, from 0 to 1; 0 of nothing."""
        return self.prunable / self.total if self.total else 0.0

    @property
    def removable_share(self) -> float:
        """The removable share, from 0 to 1; 0 of nothing."""
        return self.removable / self.total if self.total else 0.0


@dataclass(frozen=True)
class Obstacle:
    """An axis of stored parameters that may not shrink, and what that costs.

    Args:
        axis: its name, from the first parameter in which it occurs.
        size: its positions.
        members: every dimension of a parameter in which it occurs.
        reason, operator, source: why, the graph node to blame, the user's line.
        params, macs: what is out of reach, and would be prunable if this axis alone were free.
    """

    axis: str
    size: int
    members: tuple[str, ...]
    reason: str
    operator: str | None
    source: str | None
    params: int
    macs: float


@dataclass(frozen=True)
class Prunability:
    """What pruning can reach of the parameters and MACs, and the obstacles, costliest first."""

    params: Reach
    macs: Reach
    obstacles: tuple[Obstacle, ...]


def prunability(analysis: Analysis) -> Prunability:
    """Measure how much of a program lies in its groups, and what the frozen axes cost."""
    terms = collect(analysis.program, analysis.space)
    free = {group.axis: 0 for group in analysis.groups}
    thinnest = {group.axis: 1 for group in analysis.groups}
    params = _reach(terms.params, free, thinnest)
    macs = _reach(terms.macs, free, thinnest)
    kept = _charged(terms.params, free), _charged(terms.macs, free)
    obstacles = [
        _obstacle(axis, members, round(kept[0][axis]), kept[1][axis])
        for axis, members in _frozen(analysis).items()
    ]
    obstacles.sort(key=lambda item: (-_weight(item, params, macs), -item.size))
    return Prunability(params, macs, tuple(obstacles))


def _reach(
    terms: Sequence[tuple[float, Term]], free: Mapping[Axis, int], thinnest: Mapping[Axis, int]
) -> Reach:
    """Positions off every free axis are those that are left when the free axes have no positions at all."""
    total = _sum(terms, {})
    return Reach(total, total - _sum(terms, free), total - _sum(terms, thinnest))


def _sum(terms: Sequence[tuple[float, Term]], widths: Mapping[Axis, int]) -> float:
    return sum(weight * prod(width(dim, widths) for dim in term) for weight, term in terms)


def _charged(terms: Sequence[tuple[float, Term]], free: Mapping[Axis, int]) -> dict[Axis, float]:
    """By frozen axis, what would come within reach if it were free too."""
    found: dict[Axis, float] = defaultdict(float)
    widths = dict(free)
    for weight, term in terms:
        kept = prod(width(dim, free) for dim in term)
        if kept == 0:
            continue
        for axis in dict.fromkeys(axis for dim in term for axis in leaves(dim)):
            if axis not in free:
                widths[axis] = 0
                found[axis] += weight * (kept - prod(width(dim, widths) for dim in term))
                del widths[axis]
    return found


def _frozen(analysis: Analysis) -> dict[Axis, list[Member]]:
    """The frozen axes of parameters, with the dimensions in which they occur."""
    found: dict[Axis, list[Member]] = defaultdict(list)
    for node in walk.tensor_nodes(analysis.program):
        if isinstance(walk.tensor(analysis.program, node), torch.nn.Parameter):
            for place, dim in enumerate(analysis.space.of(node)):
                for axis in _remarkable(dict.fromkeys(leaves(dim))):
                    found[axis].append(member_of(analysis.program, node, place, dim))
    return found


def _remarkable(axes: Mapping[Axis, None]) -> Iterator[Axis]:
    for axis in axes:
        if axis.frozen and axis.size > 1 and axis.reasons[0].text not in UNREMARKABLE:
            yield axis


def _obstacle(axis: Axis, members: Sequence[Member], params: int, macs: float) -> Obstacle:
    reason = axis.reasons[0]
    return Obstacle(
        axis_name(members[0], axis),
        axis.size,
        tuple(dict.fromkeys(str(member) for member in members)),
        reason.text,
        reason.operator,
        reason.source,
        params,
        macs,
    )


def _weight(obstacle: Obstacle, params: Reach, macs: Reach) -> float:
    """The shares of all parameters and of all MACs that an obstacle costs, added."""
    return obstacle.params / max(params.total, 1) + obstacle.macs / max(macs.total, 1)
