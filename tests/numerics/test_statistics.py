from __future__ import annotations

import numpy as np
import pytest

from fxcompress.numerics.statistics import bootstrap_ratio


def test_ratio_of_medians_and_an_interval_around_it() -> None:
    generator = np.random.default_rng(1)
    noise = generator.normal(1.0, 0.05, (2, 40))
    ratio = bootstrap_ratio(3.0 * noise[0], 2.0 * noise[1])
    assert ratio.value == np.median(3.0 * noise[0]) / np.median(2.0 * noise[1])
    assert ratio.low < 1.5 < ratio.high
    assert ratio.high - ratio.low < 0.15


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        a, b = generator.lognormal(0.0, 0.1, (2, 30))
        ratio = bootstrap_ratio(a, b, resamples=300)
        covered += ratio.low <= 1.0 <= ratio.high
    assert 0.88 <= covered / 200 <= 0.99


def test_drift_that_hits_both_sides_of_a_round_does_not_widen_the_interval() -> None:
    generator = np.random.default_rng(3)
    drift = generator.lognormal(0.0, 0.5, 30)
    paired = bootstrap_ratio(1.1 * drift, drift)
    unpaired = bootstrap_ratio(1.1 * drift, generator.permutation(drift))
    assert paired.low == pytest.approx(1.1)
    assert paired.high == pytest.approx(1.1)
    assert unpaired.high - unpaired.low > 0.1


def test_an_outlier_round_does_not_move_the_median() -> None:
    a, b = np.ones(31), np.ones(31)
    a[3] = 100.0
    assert bootstrap_ratio(a, b).value == 1.0


def test_equal_seeds_give_equal_intervals() -> None:
    a = np.random.default_rng(4).lognormal(size=30)
    b = np.random.default_rng(5).lognormal(size=30)
    assert bootstrap_ratio(a, b) == bootstrap_ratio(a, b)
    assert bootstrap_ratio(a, b) != bootstrap_ratio(a, b, seed=1)


def test_a_single_round_has_an_interval_of_width_zero() -> None:
    ratio = bootstrap_ratio([2.0], [1.0])
    assert (ratio.low, ratio.value, ratio.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0], [-1.0]), ([np.nan], [1.0])]
)
def test_samples_that_are_none_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        bootstrap_ratio(a, b)
