"""Meeting a budget: how wide each group becomes so that the whole costs just less than what is allowed.

Every bound of a budget is an upper bound; the one that binds is met from below. Widths are multiples of the
target's channel block; where that is too coarse, alignment relaxes (block, 8, 4, 1) on as few groups as it
takes, and the plan says on which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fxcompress.errors import BudgetError
from fxcompress.numerics.saliency import Scores
from fxcompress.plan.metering import CLOSE, Bound, Costs, Meter, Widths


@dataclass(frozen=True)
class Candidate:
    """A group that may shrink.

    Args:
        name: the group's name.
        scores: saliency per index; low ones go first.
        step: the width granularity that suits the target.
        least: the smallest width the policy allows.
        most: the largest one; None stands for the full size.
    """

    name: str
    scores: Scores
    step: int
    least: int
    most: int | None = None

    @property
    def size(self) -> int:
        return len(self.scores)

    @property
    def top(self) -> int:
        """The largest allowed width."""
        return self.size if self.most is None else self.most

    def floor(self, step: int) -> int:
        """The smallest allowed width that is a multiple of `step`, or the largest allowed one."""
        return min(self.top, -(-self.least // step) * step)

    def nearest(self, width: float, step: int) -> int:
        """The allowed width closest to `width`: a multiple of `step` between the floor and the top."""
        rounded = int(width / step + 0.5) * step
        if rounded > self.top or abs(self.top - width) < abs(rounded - width):
            return self.top
        return max(rounded, self.floor(step))

    def wider(self, width: int, step: int) -> int:
        """The next allowed width above `width`."""
        return min(self.top, (width // step + 1) * step)

    @cached_property
    def ascending(self) -> Scores:
        return np.sort(self.scores)

    @cached_property
    def _sums(self) -> Scores:
        return np.concatenate([[0.0], np.cumsum(self.ascending[::-1])])

    def worth(self, width: int, wider: int) -> float:
        """The saliency of the indices that a wider width would keep beside the most salient `width`."""
        return float(self._sums[wider] - self._sums[width])


@dataclass
class Allocation:
    """Widths on their way to a budget. `steps` starts at each candidate's own and only ever gets finer."""

    candidates: Sequence[Candidate]
    meter: Meter
    steps: dict[str, int] = field(default_factory=dict)
    relaxed: dict[str, int] = field(default_factory=dict)

    @property
    def widths(self) -> Widths:
        return self.meter.widths

    def close(self) -> bool:
        return self.meter.close(self.meter.costs)

    def settle(self, item: Candidate, width: int) -> None:
        """Give a group a width; its step becomes the coarsest rung that the width is a multiple of."""
        step = self.steps[item.name]
        while width < item.top and width % step:
            step = self.relaxed[item.name] = _finer(step)
        self.steps[item.name] = step
        self.meter.set(item.name, width)


def allocate(candidates: Sequence[Candidate], bounds: Sequence[Bound]) -> Allocation:
    """Choose a width for every candidate.

    Args:
        candidates: the groups that may shrink; the parts of the bounds read no other.
        bounds: what may not be exceeded; at least one.

    Raises:
        BudgetError: even the narrowest allowed widths cost more; the message states the reachable minimum of
            each bound that is out of reach.
    """
    _refuse_unreachable(candidates, bounds)
    steps = {item.name: item.step for item in candidates}
    floors = Meter(bounds, {item.name: item.floor(item.step) for item in candidates})
    state = Allocation(candidates, floors, steps)
    _relax_until_reachable(state)
    state.meter = Meter(bounds, _threshold(state))
    _grow(state)
    _fill(state)
    _exchange(state)
    return state


def reachable(candidates: Sequence[Candidate], bounds: Sequence[Bound]) -> Costs:
    """The smallest cost of each bound: at the narrowest widths, which are the cheapest in every respect."""
    narrowest = {item.name: item.floor(1) for item in candidates}
    return tuple(bound.at(narrowest) for bound in bounds)


def _refuse_unreachable(candidates: Sequence[Candidate], bounds: Sequence[Bound]) -> None:
    least = reachable(candidates, bounds)
    missed = [(bound, cost) for bound, cost in zip(bounds, least, strict=True) if cost > bound.limit]
    if missed:
        found = "; ".join(
            f"the budget asks for {bound.limit / bound.full:.1%} of the {bound.name}, but the prunable "
            f"groups can only bring it down to {cost / bound.full:.1%} ({cost:.6g} of {bound.full:.6g})"
            for bound, cost in missed
        )
        floors = " and ".join(
            f"{cost:.6g} {bound.name}, so that at most {_down(1 - cost / bound.full)} of them can go"
            for bound, cost in missed
        )
        if any(_down(1 - cost / bound.full) == _down(0.0) for bound, cost in missed):
            hint = "nothing of it can go by these rules: lower min_width, raise max_ratio or unprotect groups"
            raise BudgetError(found, hint=hint)
        raise BudgetError(
            found, hint=f"the least that can remain: {floors}; raise max_ratio or unprotect groups"
        )


def _down(share: float) -> str:
    return f"{math.floor(share * 1000) / 1000:.3f}"


def _finer(step: int) -> int:
    """The alignment after `step` in the ladder block, 8, 4, 1."""
    return next((rung for rung in (8, 4, 1) if rung < step), 1)


def _relax_until_reachable(state: Allocation) -> None:
    """While the aligned minimum is too dear, relax the group that gains most from it."""
    meter = state.meter
    while not meter.fits(meter.costs):
        open_items = [item for item in state.candidates if item.floor(1) < meter.widths[item.name]]
        finer = {item.name: _finer(state.steps[item.name]) for item in open_items}
        if not _relax_best(state, open_items, finer):
            # Where prices are stairs, one rung may gain nothing and the whole way something.
            _relax_best(state, open_items, dict.fromkeys(finer, 1), forced=True)


def _relax_best(
    state: Allocation, items: Sequence[Candidate], steps: Mapping[str, int], forced: bool = False
) -> bool:
    meter = state.meter
    loads = [meter.load(meter.after(item.name, item.floor(steps[item.name]))) for item in items]
    best = loads.index(min(loads))
    if loads[best] >= meter.load(meter.costs) and not forced:
        return False
    item = items[best]
    state.steps[item.name] = state.relaxed[item.name] = steps[item.name]
    meter.set(item.name, item.floor(steps[item.name]))
    return True


def _threshold(state: Allocation) -> dict[str, int]:
    """One saliency threshold for all groups: the smallest number of removed indices that fits is searched by
    bisection.
    """
    ranked = np.sort(np.concatenate([np.empty(0), *(item.scores for item in state.candidates)]))
    meter = state.meter

    def widths(count: int) -> dict[str, int]:
        limit = ranked[count - 1] if count else -np.inf
        return {
            item.name: item.nearest(
                item.size - int(np.searchsorted(item.ascending, limit, side="right")), state.steps[item.name]
            )
            for item in state.candidates
        }

    def fits(count: int) -> bool:
        chosen = widths(count)
        return meter.fits(tuple(bound.at(chosen) for bound in meter.bounds))

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return widths(low)


def _grow(state: Allocation) -> None:
    """Give back whole steps, the most salient per cost first, while they fit."""
    meter = state.meter
    least = min((float(item.ascending[0]) for item in state.candidates), default=0.0)
    base = min(0.0, least)  # a score below zero is no reason to prefer the dearer of two
    while True:
        best, gain = None, -1.0
        for item in state.candidates:
            width = meter.widths[item.name]
            wider = item.wider(width, state.steps[item.name])
            if wider <= width:
                continue
            costs = meter.after(item.name, wider)
            if not meter.fits(costs):
                continue
            price = meter.price(costs)
            worth = item.worth(width, wider) - base * (wider - width)
            rate = worth / price if price > 0 else math.inf
            if rate > gain:
                best, gain = (item.name, wider), rate
        if best is None:
            return
        meter.set(*best)


def _fill(state: Allocation) -> None:
    """Close what is left by relaxing single groups, the coarsest alignment that suffices first."""
    meter = state.meter
    while not state.close():
        for step in (8, 4, 1):
            fills = [
                (item, _widest(state, {}, item, step))
                for item in state.candidates
                if step < state.steps[item.name]
            ]
            loads = [meter.load(meter.after(item.name, width)) for item, width in fills]
            most = max(loads, default=0.0)
            if most > meter.load(meter.costs) and (step == 1 or most >= 1 - CLOSE):
                state.settle(*fills[loads.index(most)])
                break
        else:
            return


def _widest(state: Allocation, changes: Widths, item: Candidate, step: int) -> int:
    """The largest multiple of `step`, or the top, that the budget allows one group beside `changes`."""
    meter = state.meter
    now = meter.widths[item.name]
    low, high = 0, max(0, -(-(item.top - now) // step))
    start = item.wider(now, step)

    def wide(count: int) -> int:
        return now if count == 0 else min(item.top, start + (count - 1) * step)

    while low < high:
        middle = (low + high + 1) // 2
        width = wide(middle)
        costs = meter.after_all({**changes, item.name: width}) if changes else meter.after(item.name, width)
        if meter.fits(costs):
            low = middle
        else:
            high = middle - 1
    return wide(low)


EXCHANGED = 6
"""How many groups take part in an exchange, and by how many indices one of them may narrow."""


def _exchange(state: Allocation) -> None:
    """Where no group alone can grow any more, narrow one a little so that another can."""
    meter = state.meter
    while not state.close():
        load = meter.load(meter.costs)
        options = _exchanges(state, _cheapest(state, -1), _cheapest(state, 1))
        best = max(options, key=lambda option: option[0], default=(0.0, ()))
        if best[0] <= load:
            return
        for item, width in best[1]:
            state.settle(item, width)


Moves = tuple[tuple[Candidate, int], ...]


def _cheapest(state: Allocation, step: int) -> list[Candidate]:
    """The groups that can narrow or widen by one index, those first for which it changes the load least."""
    meter = state.meter
    load = meter.load(meter.costs)
    changes = {}
    for item in state.candidates:
        width = meter.widths[item.name] + step
        if max(item.least, 1) <= width <= item.top:
            changes[item.name] = abs(meter.load(meter.after(item.name, width)) - load)
    able = [item for item in state.candidates if item.name in changes]
    return sorted(able, key=lambda item: changes[item.name])[:EXCHANGED]


def _exchanges(
    state: Allocation, narrows: Sequence[Candidate], wides: Sequence[Candidate]
) -> Iterator[tuple[float, Moves]]:
    """Narrow one group and widen another as far as that allows: the load then, and the two widths."""
    meter = state.meter
    for narrow in narrows:
        width = meter.widths[narrow.name]
        for less in range(1, min(EXCHANGED, width - narrow.least) + 1):
            changes = {narrow.name: width - less}
            for wide in wides:
                if wide is not narrow:
                    wider = _widest(state, changes, wide, 1)
                    load = meter.load(meter.after_all({**changes, wide.name: wider}))
                    yield load, ((narrow, width - less), (wide, wider))
