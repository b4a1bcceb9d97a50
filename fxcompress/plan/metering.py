"""Several costs of one choice of widths, kept up to date at the price of what a change touches.

A cost is a sum of *parts*, each a function of the widths of a few groups: a convolution's MACs depend on two.
Changing one width re-evaluates the parts that it occurs in and nothing else, which is what makes a search
over hundreds of groups fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

CLOSE = 0.01
"""How far below its limit, as a share of it, a bound may stay and still count as met from below."""

Widths = Mapping[str, int]
Costs = tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """One term of a cost: the groups whose widths it reads, and its value at widths."""

    names: tuple[str, ...]
    at: Callable[[Widths], float]


@dataclass(frozen=True)
class Bound:
    """An upper bound on one cost.

    Args:
        name: what is bounded, for messages.
        limit: the cost that may not be exceeded.
        full: the cost of the original.
        constant: the share of the cost that no width changes.
        parts: the rest.
    """

    name: str
    limit: float
    full: float
    constant: float
    parts: tuple[Part, ...]

    def at(self, widths: Widths) -> float:
        """The cost at widths that name every group the parts read."""
        return self.constant + math.fsum(part.at(widths) for part in self.parts)


class Meter:
    """The costs of the current widths, and what they would be after a change."""

    def __init__(self, bounds: Sequence[Bound], widths: Widths) -> None:
        self.bounds = tuple(bounds)
        self.widths = dict(widths)
        self._parts = [(place, part) for place, bound in enumerate(bounds) for part in bound.parts]
        self._values = [part.at(self.widths) for _, part in self._parts]
        self._touching: dict[str, list[int]] = {name: [] for name in self.widths}
        for number, (_, part) in enumerate(self._parts):
            for name in dict.fromkeys(part.names):
                self._touching[name].append(number)
        self._near = {
            name: {other for number in numbers for other in self._parts[number][1].names}
            for name, numbers in self._touching.items()
        }
        self._memo: dict[str, dict[int, Costs]] = {name: {} for name in self.widths}
        self.costs = self._summed()

    def _summed(self) -> Costs:
        """Summed anew after each change, so that no error builds up."""
        values: list[list[float]] = [[] for _ in self.bounds]
        for (place, _), value in zip(self._parts, self._values, strict=True):
            values[place].append(value)
        return tuple(
            bound.constant + math.fsum(mine) for bound, mine in zip(self.bounds, values, strict=True)
        )

    def after(self, name: str, width: int) -> Costs:
        """The costs if one group had another width."""
        known = self._memo[name]
        if width not in known:
            known[width] = self._change({name: width})
        return tuple(cost + change for cost, change in zip(self.costs, known[width], strict=True))

    def after_all(self, changes: Widths) -> Costs:
        """The costs if several groups had other widths."""
        return tuple(cost + change for cost, change in zip(self.costs, self._change(changes), strict=True))

    def _change(self, changes: Widths) -> Costs:
        kept = {name: self.widths[name] for name in changes}
        self.widths.update(changes)
        change = [0.0] * len(self.bounds)
        for number in dict.fromkeys(n for name in changes for n in self._touching[name]):
            place, part = self._parts[number]
            change[place] += part.at(self.widths) - self._values[number]
        self.widths.update(kept)
        return tuple(change)

    def set(self, name: str, width: int) -> None:
        """Give a group another width for good."""
        self.widths[name] = width
        for number in self._touching[name]:
            self._values[number] = self._parts[number][1].at(self.widths)
        for other in {name, *self._near[name]}:
            self._memo[other].clear()
        self.costs = self._summed()

    def fits(self, costs: Costs) -> bool:
        """Whether every bound is respected."""
        return all(cost <= bound.limit for cost, bound in zip(costs, self.bounds, strict=True))

    def load(self, costs: Costs) -> float:
        """The largest share of its limit that any cost takes."""
        return max(cost / bound.limit for cost, bound in zip(costs, self.bounds, strict=True))

    def close(self, costs: Costs) -> bool:
        """Whether a bound is met from below within a percent, so that finer widths would gain little."""
        return self.load(costs) >= 1 - CLOSE

    def price(self, costs: Costs) -> float:
        """The largest share of what is left of any bound that a change uses up."""
        shares = [
            (cost - now) / (bound.limit - now) if bound.limit > now else math.copysign(math.inf, cost - now)
            for cost, now, bound in zip(costs, self.costs, self.bounds, strict=True)
            if cost != now
        ]
        return max(shares, default=0.0)
