"""Saliency scores against loops."""

from __future__ import annotations

import numpy as np
import pytest

from fxcompress.numerics.saliency import pooled_l2, relative, squared_sums


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_squared_sums_of_slices(dim: int) -> None:
    tensor = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    expected = [
        sum(float(value) ** 2 for value in np.take(tensor, place, dim).ravel())
        for place in range(tensor.shape[dim])
    ]
    found = squared_sums(tensor, dim)
    assert found.dtype == np.float64
    assert np.allclose(found, expected, rtol=1e-12)


def test_positions_are_pooled_by_label() -> None:
    first = (np.array([0, 1, -1, 1]), np.array([4.0, 9.0, 1e9, 16.0]))
    second = (np.array([1, 0]), np.array([0.0, 5.0]))
    assert pooled_l2(3, [first, second]) == pytest.approx([3.0, 5.0, 0.0])


def test_scores_relative_to_their_mean() -> None:
    assert relative(np.array([1.0, 3.0])) == pytest.approx([0.5, 1.5])
    assert relative(np.zeros(3)) == pytest.approx([1.0, 1.0, 1.0])
