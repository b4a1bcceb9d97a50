"""Infinities that both have are no difference, and none of them makes a bound infinite."""

from __future__ import annotations

import math

import numpy as np

from fxcompress.proof.distance import distance, finite_distance, gap, largest, size

INF = math.inf
LEFT = np.array([1.0, -INF, INF, 3.0], np.float32)


def test_what_agrees_is_no_gap() -> None:
    assert not gap(LEFT, LEFT.copy()).any()
    assert distance(LEFT, LEFT) == 0.0
    assert distance(LEFT, np.array([1.0, -INF, INF, 7.0])) == 4.0


def test_an_infinity_that_one_has_alone_is_beyond_any_bound() -> None:
    other = np.array([1.0, 2.0, INF, 7.0])
    assert distance(LEFT, other) == INF
    assert finite_distance(LEFT, other) == 4.0, "a bound made of this one would let everything pass"
    assert distance(LEFT, -LEFT) == INF


def test_nan_is_beyond_any_bound() -> None:
    broken = np.array([math.nan, -INF, INF, 3.0])
    assert not distance(LEFT, broken) <= 1e300
    assert not np.abs(gap(LEFT, broken)).max() <= 1e300


def test_sizes_are_those_of_numbers() -> None:
    assert largest(LEFT) == 3.0
    assert size(LEFT) == math.sqrt(10.0)
    assert size(np.array([-INF])) == largest(np.array([-INF])) == 0.0
