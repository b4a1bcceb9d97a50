"""Schedules: their formulas at hand-computed points, and what all of them have in common."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import InputError
from fxcompress.plan.schedule import KINDS, Schedule

HALVES = {
    "one-shot": [0.0, 0.75, 0.75, 0.75, 0.75],
    "linear": [0.0, 0.1875, 0.375, 0.5625, 0.75],
    "cubic": [0.0, 0.75 * (1 - 27 / 64), 0.75 * (1 - 1 / 8), 0.75 * (1 - 1 / 64), 0.75],
    "exponential": [0.0, 1 - 0.25**0.25, 0.5, 1 - 0.25**0.75, 0.75],
}


@pytest.mark.parametrize("kind", KINDS)
def test_formulas(kind: str) -> None:
    schedule = Schedule(kind, 4)
    assert [schedule.removed(step, 0.75) for step in range(5)] == pytest.approx(HALVES[kind], abs=1e-15)


def test_exponential_removes_the_same_share_of_what_is_left() -> None:
    schedule = Schedule("exponential", 6)
    left = [1 - schedule.removed(step, 0.9) for step in range(7)]
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.1 ** (1 / 6)] * 6)


@given(st.sampled_from(KINDS), st.integers(1, 30), st.floats(0, 1))
def test_every_schedule_rises_to_exactly_the_share(kind: str, rounds: int, share: float) -> None:
    steps = [Schedule(kind, rounds).removed(step, share) for step in range(rounds + 1)]
    assert steps[0] == 0
    assert steps[-1] == share
    assert all(a <= b + 1e-15 for a, b in pairwise(steps))


@pytest.mark.parametrize("fields", [("square", 3), ("linear", 0), ("linear", 2.0), ("linear", True)])
def test_options_check_themselves(fields) -> None:
    with pytest.raises(InputError):
        Schedule(*fields)


@pytest.mark.parametrize(("step", "share"), [(-1, 0.5), (4, 0.5), (1, 1.5), (1, -0.1)])
def test_steps_and_shares_are_checked(step: int, share: float) -> None:
    with pytest.raises(InputError):
        Schedule("linear", 3).removed(step, share)
