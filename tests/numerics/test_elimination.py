"""Optimal elimination against least squares solved from scratch."""

from __future__ import annotations

import numpy as np
import pytest

from fxcompress.numerics import elimination as module
from fxcompress.numerics.elimination import Refit, elimination


@pytest.fixture(autouse=True)
def _undamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DAMPING", 1e-12)


def refitted_error(x: np.ndarray, weight: np.ndarray, gone: list[int]) -> float:
    """The mean squared error of `x @ weight` from the inputs that are left, best rows for each."""
    left = [place for place in range(x.shape[1]) if place not in gone]
    wanted = x @ weight
    best = x[:, left] @ np.linalg.lstsq(x[:, left], wanted, rcond=None)[0] if left else 0 * wanted
    return float(((wanted - best) ** 2).sum()) / len(x)


@pytest.mark.parametrize("each", [1, 2])
def test_greedy_order_and_errors(each: int) -> None:
    rng = np.random.default_rng(each)
    x = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8))
    weight = rng.normal(size=(8, 3))
    positions = rng.permutation(8).reshape(-1, each)
    covariance = x.T @ x / len(x)
    scores = elimination(len(positions), [Refit.of(positions, covariance, weight)], np.zeros(len(positions)))

    total, before, highest = refitted_error(x, weight, list(range(8))), 0.0, 0.0
    left, gone = set(range(len(positions))), []
    while left:
        errors = {i: refitted_error(x, weight, [*gone, *positions[i]]) for i in left}
        index = min(errors, key=errors.__getitem__)
        highest = max(highest, (errors[index] - before) / total)
        assert scores[index] == pytest.approx(highest, rel=1e-6)
        gone.extend(positions[index])
        before = errors[index]
        left.remove(index)


def test_of_two_inputs_that_repeat_each_other_one_is_free_and_the_other_dear() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    x = np.column_stack([x, 2 * x[:, 0]])
    weight = np.ones((4, 1))
    refit = Refit.of(np.arange(4)[:, None], x.T @ x / 50 + 1e-9 * np.eye(4), weight)
    assert refit.errors()[0] == pytest.approx(0, abs=1e-6)
    assert refit.errors()[3] == pytest.approx(0, abs=1e-6)
    scores = np.sort(elimination(4, [refit], np.zeros(4)))
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[1] > 0.01


def test_errors_of_several_maps_and_fixed_ones_add_up() -> None:
    first = Refit.of(np.arange(2)[:, None], np.eye(2), np.array([[1.0], [2.0]]))
    second = Refit.of(np.array([[1], [0]]), np.eye(2), np.array([[3.0], [1.0]]))
    expected = [1 / 5 + 1 / 10 + 0.5, 4 / 5 + 9 / 10]
    assert elimination(2, [first, second], np.array([0.5, 0.0])) == pytest.approx(expected)
