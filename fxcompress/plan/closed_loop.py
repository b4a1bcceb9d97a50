"""A budget in milliseconds, met by what is measured: plan, measure, correct the aim, until it fits.

A sum of kernel times predicts the time of a whole model up to a systematic error, which depends on the plan.
Each round aims at a predicted time, measures the model that comes of it, and corrects the aim by what was
measured so far. The rules are fixed, so that equal measurements lead to equal plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fxcompress.errors import BudgetError

Plan = TypeVar("Plan")

WITHIN = 0.05
"""How far below what was asked a measured time may stay and still count as met."""
AIM = 0.975
"""The middle of what counts as met, as a share of what was asked."""
SURE = 0.015
"""How far from the middle a round may be to end the search: a later measurement is to confirm it."""
ROUNDS = 6


@dataclass(frozen=True)
class Round(Generic[Plan]):
    """One plan, the milliseconds that were predicted for it and those that it really took."""

    plan: Plan
    predicted: float
    measured: float


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
        aim = AIM * asked
        while len(rounds) < ROUNDS:
            # A hair above the floor: the sum over parts may differ from it in the last digit.
            plan = least if aim <= floor * (1 + 1e-9) else self.plan_at(aim)
            predicted = self.predict(plan)
            if any(predicted == item.predicted for item in rounds):
                break
            rounds.append(Round(plan, predicted, self.measure(plan)))
            if abs(rounds[-1].measured - AIM * asked) <= SURE * asked:
                break
            aim = _next_aim(rounds, asked, original)
        fitting = [item for item in rounds if item.measured <= asked]
        if not fitting:
            raise _out_of_reach(rounds, asked, original, floor)
        chosen = min(fitting, key=lambda item: abs(item.measured - AIM * asked))
        return Met(asked, original, tuple(rounds), chosen)


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
