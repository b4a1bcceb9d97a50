"""Each rule finds the range its paper asks for, against a slow twin or where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxcompress.numerics.affine import asymmetric, dequantize, quantize
from fxcompress.numerics.clipping import (
    divergence,
    entropy_range,
    mse_range,
    percentile_range,
    squared_errors,
)
from fxcompress.numerics.histogram import Histogram
from fxcompress.numerics.interval import Range


def histogram_of(values: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(values)
    return histogram


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def real_error(values: Tensor, found: Range) -> float:
    """The mean squared error of the values themselves through uint8."""
    scheme = asymmetric(found.low, found.high)
    return float((dequantize(quantize(values, scheme), scheme) - values).square().mean())


def test_percentile_leaves_out_as_much_at_both_ends():
    found = percentile_range(histogram_of(torch.linspace(-1.0, 3.0, 100_001)), kept=0.99)
    assert found.low == pytest.approx(-0.98, abs=2e-3)
    assert found.high == pytest.approx(2.98, abs=2e-3)


def test_percentile_of_a_rectifier_begins_at_zero():
    found = percentile_range(histogram_of(normal(50_000).relu()))
    assert found.low == 0.0
    assert 3.0 < found.high < 4.5


def test_mse_clips_an_outlier_and_keeps_a_uniform():
    spread = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    assert mse_range(histogram_of(spread)).high == pytest.approx(1.0, abs=0.01)
    outlier = torch.cat([normal(200_000), torch.tensor([60.0])])
    found = mse_range(histogram_of(outlier))
    # clamped is one value, rounded are 200,000 with a variance of a twelfth: (60 - h)^2 + 0.256 (h + 3.6)^2
    assert found.high == pytest.approx(47.0, abs=4.0)


@pytest.mark.parametrize("shape", ["normal", "rectified", "laplace", "shifted"])
def test_mse_is_not_worse_than_any_range_of_a_grid(shape):
    values = normal(40_000)
    values = {
        "normal": values,
        "rectified": values.relu(),
        "laplace": values * values.abs(),
        "shifted": values + 2.0,
    }[shape]
    found = real_error(values, mse_range(histogram_of(values)))
    low, high = min(float(values.min()), 0.0), float(values.max())
    grid = [
        Range(low * a, high * b)
        for a in torch.linspace(0.3, 1, 15).tolist()
        for b in torch.linspace(0.3, 1, 15).tolist()
    ]
    least = min(real_error(values, one) for one in grid)
    assert found <= least * 1.03
    assert found <= real_error(values, Range(low, high))


def test_squared_errors_are_those_of_the_quantizer():
    values = normal(300)
    for low, high in ((-1.0, 2.0), (0.0, 3.0), (-4.0, 0.0)):
        expected = real_error(values, Range(low, high)) * len(values)
        found = squared_errors(
            values.double(),
            torch.ones(300, dtype=torch.float64),
            torch.tensor([low], dtype=torch.float64),
            torch.tensor([high], dtype=torch.float64),
        )
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_divergence_of_what_the_levels_hold_exactly_is_nothing():
    counts = torch.rand(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    assert divergence(counts, 0, 256) == pytest.approx(0.0, abs=1e-9)
    assert divergence(counts.repeat_interleave(4), 0, 1024) == pytest.approx(0.0, abs=1e-9)
    assert divergence(counts, 0, 200) == float("inf")
    assert divergence(counts.repeat_interleave(4), 0, 512) > 0.01


def test_entropy_cuts_an_outlier_and_is_not_ruled_by_zeros():
    values = torch.cat([normal(100_000).relu(), torch.zeros(900_000), torch.tensor([40.0])])
    found = entropy_range(histogram_of(values))
    assert found.low == 0.0
    assert 2.5 < found.high < 15.0
    without = entropy_range(histogram_of(torch.cat([normal(100_000).relu(), torch.tensor([40.0])])))
    assert found.high == pytest.approx(without.high, rel=0.05)
