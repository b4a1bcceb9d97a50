"""When how much is removed: the share of the original that is gone after each of several rounds."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.errors import InputError

KINDS = ("one-shot", "linear", "cubic", "exponential")


@dataclass(frozen=True)
class Schedule:
    """The share removed after round `t` of `n`, for a share `r` that is to be gone in the end.

        one-shot     r                       all in the first round; the others only train
        linear       r t/n                   the same share of the original each round
        cubic        r (1 - (1 - t/n)**3)    fast while much is redundant, slow near the end
        exponential  1 - (1 - r)**(t/n)      the same share of what is left each round

    The cubic one is Zhu and Gupta, "To prune, or not to prune" (2017), with an initial share of zero; the
    exponential one is the iterative rule of Han et al. (2015) and of the lottery tickets.

    Args:
        kind: one of the four.
        rounds: how many rounds, at least 1.
    """

    kind: str = "cubic"
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"schedule {self.kind!r} is not built", hint=f"built: {', '.join(KINDS)}")
        if not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 1:
            raise InputError(f"rounds={self.rounds!r} is not a positive number", hint="5 rounds are a start")

    def removed(self, step: int, share: float) -> float:
        """The share of the original that is gone after round `step` (0 is before the first).

        Args:
            step: from 0 to `rounds`; at `rounds` the result is exactly `share`.
            share: what is to be gone in the end, from 0 to 1.

        Raises:
            InputError: a step outside the schedule or a share that is none.
        """
        if not 0 <= step <= self.rounds:
            raise InputError(f"step {step} is outside of a schedule of {self.rounds} rounds")
        if not 0 <= share <= 1:
            raise InputError(f"share={share!r} is not between 0 and 1")
        if step in (0, self.rounds):
            return share if step else 0.0
        passed = step / self.rounds
        if self.kind == "one-shot":
            return share
        if self.kind == "linear":
            return share * passed
        if self.kind == "cubic":
            return share * (1 - (1 - passed) ** 3)
        return float(1 - (1 - share) ** passed)
