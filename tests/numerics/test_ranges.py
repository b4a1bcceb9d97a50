"""Streaming ranges equal the range of everything at once, and do not forget what is broken."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.numerics.ranges import ESTIMATORS, MinMax, MovingAverage, Range
from tests.numerics.memory import held

batches = st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=5), min_size=1, max_size=6)


@given(batches)
def test_a_stream_has_the_range_of_the_whole(batches):
    seen = MinMax()
    for batch in batches:
        seen.update(torch.tensor(batch))
    everything = [value for batch in batches for value in batch]
    assert seen.range() == Range(min(everything), max(everything))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_nan_in_any_batch_stays(position):
    seen = MinMax()
    for index in range(3):
        seen.update(torch.tensor([1.0, math.nan if index == position else 2.0]))
    assert not seen.range().finite


def test_an_infinity_is_not_finite():
    seen = MinMax()
    seen.update(torch.tensor([0.0, -math.inf]))
    assert not seen.range().finite


def test_nothing_seen_is_an_error_and_an_empty_tensor_is_nothing():
    seen = MinMax()
    seen.update(torch.empty(0))
    with pytest.raises(ValueError, match="no values"):
        seen.range()
    seen.update(torch.tensor([3.0]))
    seen.update(torch.empty(0, 4))
    assert seen.range() == Range(3.0, 3.0)


def stream(seed: int = 0, count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(500, generator=generator) * (1 + index) for index in range(count)]


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_every_estimator_stays_inside_what_it_saw(name):
    seen = ESTIMATORS[name]()
    for batch in stream():
        seen.update(batch)
    found, whole = seen.range(), seen.seen()
    assert whole.low <= found.low < 0.0 < found.high <= whole.high
    assert whole == Range(float(torch.cat(stream()).min()), float(torch.cat(stream()).max()))


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@pytest.mark.parametrize("value", [0.0, 3.25, -7.0])
def test_a_constant_is_its_own_range(name, value):
    seen = ESTIMATORS[name]()
    for _ in range(3):
        seen.update(torch.full((4, 4), value))
    assert seen.range().low == pytest.approx(value)
    assert seen.range().high == pytest.approx(value)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_nothing_is_an_error_and_what_is_not_finite_shows(name):
    seen = ESTIMATORS[name]()
    seen.update(torch.empty(0))
    with pytest.raises(ValueError, match="no values"):
        seen.range()
    with pytest.raises(ValueError, match="no values"):
        seen.seen()
    seen.update(torch.tensor([1.0, math.inf]))
    seen.update(torch.tensor([1.0, 2.0]))
    assert not seen.seen().finite
    assert not seen.range().finite


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"average"}))
def test_the_order_of_the_batches_does_not_matter(name):
    forward, backward = ESTIMATORS[name](), ESTIMATORS[name]()
    for batch in stream():
        forward.update(batch)
    for batch in reversed(stream()):
        backward.update(batch)
    assert forward.range().low == pytest.approx(backward.range().low, rel=0.02)
    assert forward.range().high == pytest.approx(backward.range().high, rel=0.02)


def test_a_moving_average_is_the_average_from_its_first_batch_on():
    seen = MovingAverage(pace=0.5)
    seen.update(torch.tensor([-1.0, 1.0]))
    assert seen.range() == Range(-1.0, 1.0)
    seen.update(torch.tensor([-1.0, 4.0]))
    assert seen.range() == Range(-1.0, 3.0)  # a third of 1, two thirds of 4


def test_ten_thousand_samples_take_no_more_memory_than_ten():
    generator = torch.Generator().manual_seed(0)
    for name in sorted(ESTIMATORS):
        few, many = ESTIMATORS[name](), ESTIMATORS[name]()
        for index in range(1000):
            batch = torch.randn(10, 8, generator=generator) * (1.0 + index)
            many.update(batch)
            if index == 0:
                few.update(batch)
        few.range(), many.range()
        assert held(many) == held(few)
