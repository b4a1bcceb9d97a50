"""A histogram of a stream is that of everything at once, however its range grew; its size never changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.numerics.histogram import BINS, Histogram

numbers = st.floats(-6e4, 6e4, width=16)


def counted(histogram: Histogram, values: torch.Tensor) -> torch.Tensor:
    """The counts by a slow and obvious rule: an edge belongs to the bin on its right."""
    edges = histogram.edges().tolist()
    exact = [float(value) for value in values]
    return torch.tensor(
        [sum(low <= value < high for value in exact) for low, high in pairwise(edges)],
        dtype=torch.float64,
    )


@given(st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_stream_is_counted_like_everything_at_once(batches):
    histogram = Histogram(16)
    for batch in batches:
        histogram.update(torch.tensor(batch))
    everything = torch.tensor([value for batch in batches for value in batch])
    assert torch.equal(histogram.counts, counted(histogram, everything))
    assert histogram.counts.sum() == len(everything)


@pytest.mark.parametrize("first", [1e-3, 1.0, -1.0, -5e4])
def test_bins_widen_by_doubling_and_zero_stays_an_edge(first):
    histogram = Histogram(64)
    histogram.update(torch.tensor([first]))
    before = histogram.width
    histogram.update(torch.tensor([-1e5, 3e5]))
    ratio = histogram.width / before
    assert ratio == 2.0 ** round(torch.log2(torch.tensor(ratio, dtype=torch.float64)).item())
    assert len(histogram.counts) == 64
    assert 0.0 in histogram.edges().tolist()


def test_the_bins_in_use_are_a_quarter_at_least():
    for scale in (1e-20, 0.3, 0.5, 1.0, 1.01, 7e8):
        histogram = Histogram()
        histogram.update(torch.linspace(0.0, scale, 9))
        assert scale / histogram.width >= BINS / 4


def test_one_value_far_from_zero_and_one_of_zero():
    for value in (0.0, 1e30, -3.0):
        histogram = Histogram(32)
        histogram.update(torch.full((5,), value))
        assert histogram.counts.max() == 5.0
        place = int(histogram.counts.argmax())
        assert histogram.edges()[place] <= value < histogram.edges()[place + 1]


def test_half_precision_is_counted():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    histogram = Histogram(256)
    histogram.update(values)
    assert torch.equal(histogram.counts, counted(histogram, values))
