"""Meeting a budget: how wide each group becomes so that the whole costs just less than what is allowed.

The budget is an upper bound met from below. Widths are multiples of the target's channel block; where that is
too coarse, alignment relaxes (block, 8, 4, 1) on as few groups as it takes, and the plan says on which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fxcompress.errors import BudgetError
from fxcompress.numerics.saliency import Scores

CLOSE = 0.01
"""How far below the budget, as a share of it, a plan may stay while a finer width would come closer."""

Widths = Mapping[str, int]
CostOf = Callable[[Widths], float]


@dataclass(frozen=True)
class Candidate:
    """A group that may shrink.

    Args:
        name: the group's name.
        scores: saliency per index; low ones go first.
        step: the width granularity that suits the target.
        least: the smallest width the policy allows.
    """

    name: str
    scores: Scores
    step: int
    least: int

    @property
    def size(self) -> int:
        return len(self.scores)

    def floor(self, step: int) -> int:
        """The smallest allowed width that is a multiple of `step`, or the full size."""
        return min(self.size, -(-self.least // step) * step)

    def nearest(self, width: float, step: int) -> int:
        """The allowed width closest to `width`: a multiple of `step` between the floor and the full size."""
        rounded = int(width / step + 0.5) * step
        if rounded > self.size or abs(self.size - width) < abs(rounded - width):
            return self.size
        return max(rounded, self.floor(step))

    def wider(self, width: int, step: int) -> int:
        """The next allowed width above `width`."""
        return min(self.size, (width // step + 1) * step)


@dataclass
class Allocation:
    """Widths on their way to a budget. `steps` starts at each candidate's own and only ever gets finer."""

    candidates: Sequence[Candidate]
    cost_of: CostOf
    budget: float
    steps: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    relaxed: dict[str, int] = field(default_factory=dict)

    def spent(self) -> float:
        return self.cost_of(self.widths)

    def cost_with(self, name: str, width: int) -> float:
        return self.cost_of({**self.widths, name: width})

    def close(self) -> bool:
        """Whether what is spent is within a percent of the budget."""
        return self.budget - self.spent() <= CLOSE * self.budget

    def settle(self, item: Candidate, width: int) -> None:
        """Give a group a width; its step becomes the coarsest rung that the width is a multiple of."""
        step = self.steps[item.name]
        while width < item.size and width % step:
            step = self.relaxed[item.name] = _finer(step)
        self.widths[item.name], self.steps[item.name] = width, step


def allocate(candidates: Sequence[Candidate], cost_of: CostOf, budget: float) -> Allocation:
    """Choose a width for every candidate.

    Args:
        candidates: the groups that may shrink.
        cost_of: the exact cost of the program at given widths (groups not named keep theirs).
        budget: the cost that may not be exceeded.

    Raises:
        BudgetError: even the narrowest allowed widths cost more; the message states the reachable minimum.
    """
    least = cost_of({item.name: item.floor(1) for item in candidates})
    if least > budget:
        full = cost_of({})
        raise BudgetError(
            f"the budget asks for {budget / full:.1%} of the cost, but the prunable groups can only bring it "
            f"down to {least / full:.1%}",
            hint=f"ask to remove at most {_down(1 - least / full)}, raise max_ratio or unprotect groups",
        )
    state = Allocation(candidates, cost_of, budget, {item.name: item.step for item in candidates})
    _relax_until_reachable(state)
    _threshold(state)
    _grow(state)
    _fill(state)
    _exchange(state)
    return state


def _down(share: float) -> str:
    return f"{math.floor(share * 1000) / 1000:.3f}"


def _finer(step: int) -> int:
    """The alignment after `step` in the ladder block, 8, 4, 1."""
    return next((rung for rung in (8, 4, 1) if rung < step), 1)


def _relax_until_reachable(state: Allocation) -> None:
    """While the aligned minimum is too dear, relax the group that gains most from it."""
    floors = {item.name: item.floor(state.steps[item.name]) for item in state.candidates}
    while state.cost_of(floors) > state.budget:
        options = [item for item in state.candidates if item.floor(1) < floors[item.name]]

        def gained(item: Candidate) -> float:
            return state.cost_of({**floors, item.name: item.floor(_finer(state.steps[item.name]))})

        best = min(options, key=gained)
        state.steps[best.name] = state.relaxed[best.name] = _finer(state.steps[best.name])
        floors[best.name] = best.floor(state.steps[best.name])


def _threshold(state: Allocation) -> None:
    """One saliency threshold for all groups: the highest number of removed indices is searched by
    bisection.
    """
    ranked = np.sort(np.concatenate([item.scores for item in state.candidates]))

    def widths(count: int) -> dict[str, int]:
        limit = ranked[count - 1] if count else -np.inf
        return {
            item.name: item.nearest(int((item.scores > limit).sum()), state.steps[item.name])
            for item in state.candidates
        }

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if state.cost_of(widths(middle)) <= state.budget:
            high = middle
        else:
            low = middle + 1
    state.widths = widths(low)


def _grow(state: Allocation) -> None:
    """Give back whole steps, the most salient per cost first, while they fit."""
    while True:
        spent = state.spent()
        best, gain = None, 0.0
        for item in state.candidates:
            width = state.widths[item.name]
            wider = item.wider(width, state.steps[item.name])
            if wider == width:
                continue
            price = state.cost_with(item.name, wider) - spent
            worth = float(np.sort(item.scores)[item.size - wider : item.size - width].sum())
            if 0 < price <= state.budget - spent and worth / price > gain:
                best, gain = (item.name, wider), worth / price
        if best is None:
            return
        state.widths[best[0]] = best[1]


def _fill(state: Allocation) -> None:
    """Close what is left by relaxing single groups, the coarsest alignment that suffices first."""
    while not state.close():
        for step in (8, 4, 1):
            fills = [
                (item, _widest(state, state.widths, item, step))
                for item in state.candidates
                if step < state.steps[item.name]
            ]
            costs = [state.cost_with(item.name, width) for item, width in fills]
            most = max(costs, default=0.0)
            if most > state.spent() and (step == 1 or state.budget - most <= CLOSE * state.budget):
                state.settle(*fills[costs.index(most)])
                break
        else:
            return


def _widest(state: Allocation, widths: Widths, item: Candidate, step: int) -> int:
    """The largest multiple of `step`, or full size, that the budget allows one group beside `widths`."""
    low, high = 0, -(-(item.size - widths[item.name]) // step)
    start = item.wider(widths[item.name], step)

    def wide(count: int) -> int:
        return widths[item.name] if count == 0 else min(item.size, start + (count - 1) * step)

    while low < high:
        middle = (low + high + 1) // 2
        if state.cost_of({**widths, item.name: wide(middle)}) <= state.budget:
            low = middle
        else:
            high = middle - 1
    return wide(low)


EXCHANGED = 6
"""How many groups take part in an exchange, and by how many indices one of them may narrow."""


def _exchange(state: Allocation) -> None:
    """Where no group alone can grow any more, narrow one a little so that another can."""
    while not state.close():
        spent = state.spent()
        cheapest = sorted(
            (item for item in state.candidates if state.widths[item.name] > 1),
            key=lambda item: spent - state.cost_with(item.name, state.widths[item.name] - 1),
        )[:EXCHANGED]
        best = max(_exchanges(state, cheapest), key=lambda option: option[0], default=(0.0, ()))
        if best[0] <= spent:
            return
        for item, width in best[1]:
            state.settle(item, width)


Moves = tuple[tuple[Candidate, int], ...]


def _exchanges(state: Allocation, items: Sequence[Candidate]) -> Iterator[tuple[float, Moves]]:
    """Narrow one group and widen another as far as that allows: what is spent then, and the two widths."""
    for narrow in items:
        width = state.widths[narrow.name]
        for less in range(1, min(EXCHANGED, width - narrow.least) + 1):
            widths = {**state.widths, narrow.name: width - less}
            for wide in items:
                if wide is not narrow:
                    wider = _widest(state, widths, wide, 1)
                    cost = state.cost_of({**widths, wide.name: wider})
                    yield cost, ((narrow, width - less), (wide, wider))
