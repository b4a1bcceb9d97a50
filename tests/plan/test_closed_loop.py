"""The closed loop against a made-up machine: what is measured decides, by fixed rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.errors import BudgetError
from fxcompress.plan.closed_loop import MEASUREMENTS, ROUNDS, TRIES, WITHIN, Loop, Met

ORIGINAL = 10.0


def loop_of(real: Callable[[float], float], *, grid: float = 0.01, floor: float = 1.0) -> Loop[float]:
    """Plans are their predicted milliseconds, in steps of `grid`; `real` maps them to measured ones."""

    def plan_at(milliseconds: float) -> float:
        assert milliseconds >= floor
        return max(floor, min(ORIGINAL, milliseconds // grid * grid))

    return Loop(plan_at, lambda: floor, lambda plan: plan, real)


def solved(real: Callable[[float], float], asked: float, **options: float) -> Met[float]:
    return loop_of(real, **options).meet(asked, ORIGINAL)


def test_a_perfect_prediction_takes_one_round() -> None:
    met = solved(lambda predicted: predicted, 5.0)
    assert len(met.rounds) == 1
    assert met.chosen.times == (met.chosen.predicted, met.chosen.predicted)  # and is confirmed
    assert met.close


@given(st.floats(0.0, 0.6), st.floats(0.6, 1.6), st.floats(0.35, 0.95))
def test_what_is_measured_is_close_below_what_was_asked(rest: float, power: float, share: float) -> None:
    """The real time has a constant that prices do not know, and bends."""

    def real(predicted: float) -> float:
        return ORIGINAL * (rest + (1 - rest) * (predicted / ORIGINAL) ** power)

    asked = share * ORIGINAL
    if real(1.0) > 0.9 * asked:
        return
    met = solved(real, asked)
    assert (1 - WITHIN) * asked <= met.chosen.measured <= asked
    assert len(met.rounds) <= ROUNDS


def test_below_the_narrowest_the_error_states_what_was_measured_there() -> None:
    with pytest.raises(BudgetError, match=r"narrowest widths only bring it down to 3\.7 ms \(37\.0%\)"):
        solved(lambda predicted: 3 + 0.7 * predicted, 2.0)


def test_the_narrowest_is_measured_before_a_budget_is_refused() -> None:
    """Prices say that 2 ms are out of reach, the machine says otherwise."""
    met = solved(lambda predicted: 0.5 * predicted, 2.0, floor=3.0)
    assert 1.9 <= met.chosen.measured <= 2.0


def test_coarse_steps_take_the_slowest_that_fits() -> None:
    met = solved(lambda predicted: predicted, 5.0, grid=2.0)
    assert met.chosen.measured == 4.0
    assert not met.close


def test_a_model_that_never_fits_is_refused() -> None:
    with pytest.raises(BudgetError, match="rounds only bring it down"):
        solved(lambda predicted: 5.2, 5.0)


def test_asking_for_more_than_the_original_takes_removes_nothing() -> None:
    met = solved(lambda predicted: predicted, 20.0)
    assert met.chosen.plan == ORIGINAL


def test_noise_that_turns_the_order_around_is_no_trap() -> None:
    noise = iter([1.2, 0.7, 1.3, 0.8, *[1.0] * 10])
    met = solved(lambda predicted: predicted * next(noise), 5.0)
    assert met.chosen.measured <= 5.0
    assert len(met.rounds) <= ROUNDS


@pytest.mark.parametrize("burst", [0.9, 1.1])
@pytest.mark.parametrize("when", range(4))
def test_a_single_disturbed_measurement_does_not_decide(burst: float, when: int) -> None:
    """The benchmark's MobileNetV2, asked for 35 %, came out at 38 %: the burst made it look like 34 %."""
    calls: list[float] = []
    seen = {}

    def disturbed(predicted: float) -> float:
        seen[predicted] = 3.5 + 0.04 * predicted**2
        calls.append(burst if len(calls) == when else 1.0)
        return seen[predicted] * calls[-1]

    met = solved(disturbed, 5.0)
    assert burst in calls
    assert (1 - WITHIN) * 5.0 <= seen[met.chosen.plan] <= 5.0
    assert len(met.chosen.times) > 1


def test_a_plan_that_looked_too_slow_once_is_tried_again_before_the_budget_is_refused() -> None:
    noise = iter([1.5, *[1.0] * 10])
    met = solved(lambda predicted: 4.8 * next(noise), 5.0, floor=5.0)
    assert met.chosen.times == (4.8 * 1.5, 4.8, 4.8)
    assert met.chosen.measured == 4.8


def test_a_machine_that_never_agrees_with_itself_ends() -> None:
    noise = iter([0.8, 1.1, 0.9, 1.2, 0.7] * 10)
    calls = []

    def real(predicted: float) -> float:
        calls.append(predicted)
        return predicted * next(noise)

    met = solved(real, 5.0)
    assert len(calls) <= MEASUREMENTS
    assert max(len(item.times) for item in met.rounds) <= TRIES
    assert met.chosen.measured <= 5.0


def test_what_was_measured_once_is_not_handed_out() -> None:
    """Every plan looks as if it fitted, and does not when it is measured again."""
    noise = iter([4.6, *[4.87, 5.3] * 10])
    met = solved(lambda predicted: next(noise), 5.0)
    assert len(met.chosen.times) > 1
    assert met.chosen.measured <= 5.0


def test_equal_measurements_lead_to_equal_rounds() -> None:
    def real(predicted: float) -> float:
        return 2 + 0.8 * predicted

    assert solved(real, 5.0) == solved(real, 5.0)
