"""Saliency scores against loops and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fxcompress.errors import InputError
from fxcompress.numerics.saliency import (
    DATA_KINDS,
    KINDS,
    NAMED,
    NORMALIZATIONS,
    REDUCTIONS,
    STORED_KINDS,
    Saliency,
    absolute_sums,
    as_saliency,
    lamp,
    normalized,
    pooled,
    squared_distances,
    squared_sums,
)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_sums_of_slices(dim: int) -> None:
    tensor = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    slices = [
        [float(value) for value in np.take(tensor, place, dim).ravel()] for place in range(tensor.shape[dim])
    ]
    for found, power in ((absolute_sums(tensor, dim), 1), (squared_sums(tensor, dim), 2)):
        assert found.dtype == np.float64
        assert np.allclose(found, [sum(abs(value) ** power for value in part) for part in slices], rtol=1e-12)


FIRST = (np.array([0, 1, -1, 1]), np.array([4.0, 9.0, 1e9, 16.0]))
SECOND = (np.array([1, 0]), np.array([0.0, 5.0]))


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("sum", [9.0, 25.0, 0.0]),
        ("mean", [4.5, 25 / 3, 0.0]),
        ("max", [5.0, 16.0, 0.0]),
        ("product", [math.sqrt(20), 0.0, 1.0]),  # geometric means; of no number it is 1
    ],
)
def test_positions_are_reduced_by_label(reduce: str, expected: list[float]) -> None:
    assert pooled(3, [FIRST, SECOND], reduce) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [0.5, 1.5]),
        ("max", [1 / 3, 1.0]),
        ("sum", [0.25, 0.75]),
        ("standard", [-1.0, 1.0]),
        ("none", [1.0, 3.0]),
        ("macs", [1.0, 3.0]),
        ("lamp", [0.1, 1.0]),
    ],
)
def test_normalizations(how: str, expected: list[float]) -> None:
    assert normalized(np.array([1.0, 3.0]), how) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", 1.0), ("max", 1.0), ("sum", 0.25), ("standard", 0.0), ("lamp", 1.0)]
)
def test_a_group_of_zeros_has_no_order(how: str, expected: float) -> None:
    assert np.array_equal(normalized(np.zeros(4), how), np.full(4, expected))


def test_lamp_relates_each_square_to_those_not_smaller() -> None:
    assert lamp(np.array([2.0, 1.0, 2.0, 0.0])) == pytest.approx([4 / 8, 1 / 9, 1.0, 0.0])


def test_squared_distances() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert squared_distances(rows) == pytest.approx(np.array([[0, 25, 1], [25, 0, 18], [1, 18, 0]]))


def test_every_kind_names_its_paper() -> None:
    assert len(set(KINDS)) == len(KINDS) == len(STORED_KINDS) + len(DATA_KINDS)
    assert all("19" in text or "20" in text for text in (STORED_KINDS | DATA_KINDS).values())


def test_names() -> None:
    assert set(NAMED) == {*KINDS, "lamp"}
    assert as_saliency("lamp").normalize == "lamp"
    assert as_saliency(Saliency("l1", "max")) == Saliency("l1", "max")
    with pytest.raises(InputError, match="'hessian' is not one of l1, l2"):
        as_saliency("hessian")
    for reduce in REDUCTIONS:
        for how in NORMALIZATIONS:
            assert Saliency(reduce=reduce, normalize=how).kind == "l2"
