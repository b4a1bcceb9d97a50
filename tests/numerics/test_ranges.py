"""Streaming ranges equal the range of everything at once, and do not forget what is broken."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.numerics.ranges import MinMax, Range

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
