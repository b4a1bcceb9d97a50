"""A budget in milliseconds, met by what is measured: plan, measure, correct the aim, until it fits.

A sum of kernel times predicts the time of a whole model up to a systematic error, which depends on the plan.
Each round aims at a predicted time, measures the model that comes of it, and corrects the aim by what was
measured so far. The rules are fixed, so that equal measurements lead to equal plans.

One measurement is not believed: a burst of other work on the machine can make a plan look as if it fitted
(MobileNetV2 asked for 35 % of its time was handed out at 38 %). The plan to be taken is measured again, some
seconds later, until two measurements agree or there are `TRIES` of them; their median counts. So is one that
others were made on the word of.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, TypeVar

from fxcompress.errors import BudgetError

Plan = TypeVar("Plan")

WITHIN = 0.05
"""How far below what was asked a measured time may stay and still count as met."""
AIM = 0.975
"""The middle of what counts as met, as a share of what was asked."""
SURE = 0.015
"""How far from the middle a round may be to end the search."""
AGREE = 0.015
"""How far apart two measurements of one plan may be, as a share of what was asked, to confirm each other."""
TRIES = 3
"""How often one plan is measured at most."""
ROUNDS = 6
"""How many plans are measured at most."""
MEASUREMENTS = 10
"""How many measurements there are at most, of all plans."""


@dataclass(frozen=True)
class Round(Generic[Plan]):
    """One plan, the milliseconds that were predicted for it and those that it really took, every time."""

    plan: Plan
    predicted: float
    times: tuple[float, ...]

    @property
    def measured(self) -> float:
        """The median of what was measured, in milliseconds."""
        return statistics.median(self.times)

    def confirmed(self, asked: float) -> bool:
        """Whether two measurements agree, or nothing is left to try."""
        near = any(later - one <= AGREE * asked for one, later in pairwise(sorted(self.times)))
        return near or len(self.times) >= TRIES


@dataclass(frozen=True)
class Met(Generic[Plan]):
    """A budget that was met: what was asked, what the original takes, every round, and which one is taken."""

    asked: float
    original: float
    rounds: tuple[Round[Plan], ...]
    chosen: Round[Plan]

    @property
    def close(self) -> bool:
        """Whether the measured time is within `WITHIN` of what was asked."""
        return self.chosen.measured >= (1 - WITHIN) * self.asked


@dataclass(frozen=True)
class Loop(Generic[Plan]):
    """What the loop needs of the world.

    Args:
        plan_at: the plan whose predicted milliseconds are at most so many.
        narrowest: the plan that no budget can go below.
        predict: milliseconds predicted for a plan.
        measure: milliseconds that the model of a plan takes.
    """

    plan_at: Callable[[float], Plan]
    narrowest: Callable[[], Plan]
    predict: Callable[[Plan], float]
    measure: Callable[[Plan], float]

    def meet(self, asked: float, original: float) -> Met[Plan]:
        """Find a plan that takes at most `asked` milliseconds and is close to that.

        Where no round comes close, the one that fits best is taken.

        Raises:
            BudgetError: the narrowest plan takes longer, or no round fits.
        """
        least = self.narrowest()
        floor = self.predict(least)
        rounds: list[Round[Plan]] = []
        for left in range(MEASUREMENTS, 0, -1):
            best = _best(rounds, asked)
            settled = best is not None and abs(best.measured - AIM * asked) <= SURE * asked
            doubtful = None if settled else _standing(rounds, asked)
            enough = settled or doubtful is not None or left == 1  # the last one is to confirm, not to try
            fresh = None if enough else self._fresh(rounds, asked, original, least)
            if fresh is not None:
                rounds.append(Round(fresh, self.predict(fresh), (self.measure(fresh),)))
                continue
            doubtful = doubtful or best or min(rounds, key=lambda item: item.measured)
            if doubtful.confirmed(asked):
                break
            times = (*doubtful.times, self.measure(doubtful.plan))
            rounds[rounds.index(doubtful)] = replace(doubtful, times=times)
        again = [item for item in rounds if len(item.times) > 1]
        chosen = _best(again, asked) or _best(rounds, asked)
        if chosen is None:
            raise _out_of_reach(rounds, asked, original, floor)
        return Met(asked, original, tuple(rounds), chosen)

    def _fresh(
        self, rounds: Sequence[Round[Plan]], asked: float, original: float, least: Plan
    ) -> Plan | None:
        """The next plan to measure; None where that is one that was measured, or there were enough."""
        if len(rounds) >= ROUNDS:
            return None
        floor = self.predict(least)
        aim = _next_aim(rounds, asked, original) if rounds else AIM * asked
        # A hair above the floor: the sum over parts may differ from it in the last digit.
        plan = least if aim <= floor * (1 + 1e-9) else self.plan_at(aim)
        predicted = self.predict(plan)
        return None if any(predicted == item.predicted for item in rounds) else plan


def _best(rounds: Sequence[Round[Plan]], asked: float) -> Round[Plan] | None:
    """The round that comes closest to the middle of what counts as met, of those that fit."""
    fitting = [item for item in rounds if item.measured <= asked]
    return min(fitting, key=lambda item: abs(item.measured - AIM * asked), default=None)


def _standing(rounds: Sequence[Round[Plan]], asked: float) -> Round[Plan] | None:
    """The nearest round that was too slow, where others were made since on its word alone."""
    slow = [item for item in rounds if item.measured > AIM * asked]
    nearest = min(slow, key=lambda item: item.predicted, default=None)
    if nearest is None or (nearest is rounds[-1] and len(nearest.times) == 1) or nearest.confirmed(asked):
        return None
    return nearest


def _next_aim(rounds: Sequence[Round[Plan]], asked: float, original: float) -> float:
    """The predicted time to aim at: between what was too slow and what was faster than need be, by the
    straight line through both; beyond what was measured, further along the line from the original.
    """
    wanted = AIM * asked
    points = [(item.predicted, item.measured) for item in rounds]
    slow = min((point for point in points if point[1] > wanted), default=(original, original))
    fast = max((point for point in points if point[1] <= wanted), default=None)
    if fast is None:
        return _further(slow, wanted, original)
    if slow[0] <= fast[0] or slow[1] <= fast[1]:
        return fast[0] * wanted / fast[1]  # noise turned the order around
    share = (wanted - fast[1]) / (slow[1] - fast[1])
    return fast[0] + share * (slow[0] - fast[0])


def _further(slow: tuple[float, float], wanted: float, original: float) -> float:
    """Below everything that was measured: the line from the original through the nearest, but no further than
    half of what proportion says, for the line may be noise.
    """
    proportional = slow[0] * wanted / slow[1]
    if slow[0] >= original or slow[1] >= original:
        return proportional
    slope = (original - slow[1]) / (original - slow[0])
    return max(0.5 * proportional, min(proportional, slow[0] - (slow[1] - wanted) / slope))


def _out_of_reach(rounds: Sequence[Round[Plan]], asked: float, original: float, floor: float) -> BudgetError:
    best = min(rounds, key=lambda item: item.measured)
    what = "the narrowest widths" if best.predicted <= floor * (1 + 1e-9) else f"{len(rounds)} rounds"
    return BudgetError(
        f"the budget asks for {asked:.4g} ms, {asked / original:.1%} of the {original:.4g} ms that the model "
        f"takes, but {what} only bring it down to {best.measured:.4g} ms ({best.measured / original:.1%})",
        hint=f"ask for at least {1.02 * best.measured:.4g} ms, raise max_ratio or unprotect groups",
    )
