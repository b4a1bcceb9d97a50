"""Meeting a budget: how wide each group becomes so that the whole costs just less than what is allowed.

The budget is an upper bound met from below. Widths are multiples of the target's channel block; where that is
too coarse, alignment relaxes (block, 8, 4, 1) on as few groups as it takes, and the plan says on which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
            f"the budget asks for {budget / full:.1%} of the cost, but the prunable groups can only bring "
            f"it down to {least / full:.1%}",
            hint=f"ask to remove at most {1 - least / full:.3f}, raise max_ratio, or unprotect groups",
        )
    state = Allocation(candidates, cost_of, budget, {item.name: item.step for item in candidates})
    _relax_until_reachable(state)
    _threshold(state)
    _grow(state)
    _fill(state)
    return state


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
    while (gap := state.budget - state.spent()) > CLOSE * state.budget:
        for step in (8, 4, 1):
            fills = {
                item.name: _widest(state, item, step)
                for item in state.candidates
                if step < state.steps[item.name]
            }
            costs = {name: state.cost_with(name, width) for name, width in fills.items()}
            name = max(costs, key=lambda key: costs[key], default=None)
            if name is None or costs[name] <= state.spent():
                continue
            if step > 1 and state.budget - costs[name] > CLOSE * state.budget:
                continue
            state.widths[name] = fills[name]
            state.steps[name] = state.relaxed[name] = step
            break
        else:
            return
        if state.budget - state.spent() >= gap:
            return


def _widest(state: Allocation, item: Candidate, step: int) -> int:
    """The largest multiple of `step` (or the full size) that the budget allows for one group."""
    best = state.widths[item.name]
    width = item.wider(best, step)
    while width > best and state.cost_with(item.name, width) <= state.budget:
        best, width = width, item.wider(width, step)
    return best
