"""Affine quantization against a slow twin in exact arithmetic, and its promises on any range."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.numerics import affine

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)
ranges = st.tuples(finite, finite).map(sorted)


def slow_quantize(value: float, scheme: affine.Affine) -> int:
    """Round to nearest, halves to even, in rational arithmetic."""
    exact = Fraction(value) / Fraction(scheme.scale)
    return min(max(round(exact) + scheme.zero_point, scheme.low), scheme.high)


@given(ranges, st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_any_value_of_the_range_comes_back_within_half_a_scale(bounds, places):
    low, high = bounds
    scheme = affine.asymmetric(low, high)
    values = torch.tensor([low + (high - low) * place for place in places], dtype=torch.float64)
    values = values.clamp(low, high)
    back = affine.dequantize(affine.quantize(values, scheme), scheme).double()
    # The scale itself is rounded to float32, so the 255 steps miss the range's end by 255 half-ulps of it.
    slack = scheme.scale * (0.5 + 255 * 2**-23)
    assert ((back - values).abs() <= slack).all()


@given(ranges)
def test_zero_is_an_integer_exactly(bounds):
    scheme = affine.asymmetric(*bounds)
    zero = affine.quantize(torch.zeros(1), scheme)
    assert zero.item() == scheme.zero_point
    assert affine.dequantize(zero, scheme).item() == 0.0


@given(ranges, st.lists(finite, min_size=1, max_size=20))
def test_quantize_agrees_with_exact_arithmetic_to_one_step(bounds, values):
    scheme = affine.asymmetric(*bounds)
    fast = affine.quantize(torch.tensor(values), scheme).tolist()
    for value, integer in zip(values, fast, strict=True):
        assert abs(integer - slow_quantize(value, scheme)) <= 1


@given(ranges)
def test_values_outside_are_clamped(bounds):
    scheme = affine.asymmetric(*bounds)
    low, high = scheme.range
    beyond = torch.tensor([low - 10 * scheme.scale, high + 10 * scheme.scale])
    assert affine.quantize(beyond, scheme).tolist() == [0, 255]


def test_a_positive_range_has_zero_point_zero_and_starts_at_zero():
    assert affine.asymmetric(0.0, 5.1) == affine.Affine(affine.as_float32(5.1 / 255), 0)
    assert affine.asymmetric(3.0, 5.1).zero_point == 0


def test_a_negative_range_ends_at_zero():
    scheme = affine.asymmetric(-2.0, -1.0)
    assert scheme.zero_point == 255
    assert scheme.range[1] == 0.0


@pytest.mark.parametrize("constant", [3.7, -0.02, 1e-20, -4e30])
def test_a_constant_tensor_comes_back_to_float32_precision(constant):
    scheme = affine.asymmetric(constant, constant)
    values = torch.full((4,), constant)
    back = affine.dequantize(affine.quantize(values, scheme), scheme)
    torch.testing.assert_close(back, values, rtol=2**-22, atol=0)


def test_degenerate_ranges_have_a_usable_scale():
    assert affine.asymmetric(0.0, 0.0) == affine.Affine(1.0, 0)
    tiny = affine.asymmetric(-1e-45, 1e-45)
    assert tiny.scale == affine.SMALLEST_SCALE
    assert affine.quantize(torch.zeros(1), tiny).item() == tiny.zero_point


@pytest.mark.parametrize("bounds", [(float("nan"), 1.0), (0.0, float("inf")), (2.0, 1.0)])
def test_what_is_no_range_is_refused(bounds):
    with pytest.raises(ValueError, match="is not a range"):
        affine.asymmetric(*bounds)


@given(st.integers(0, 3), st.sampled_from([127, 64]), st.integers(0, 2**32 - 1))
def test_weights_are_symmetric_per_channel(axis, limit, seed):
    weight = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(seed))
    scales = affine.channel_scales(weight, axis, limit)
    whole = affine.quantize_channels(weight, scales, axis, limit)
    assert scales.shape == (weight.shape[axis],)
    for channel, scale in enumerate(scales.tolist()):
        values, stored = weight.select(axis, channel), whole.select(axis, channel)
        # The largest magnitude becomes the limit, of either sign, and every other is within half a step.
        assert stored.abs().max().item() == limit
        assert ((stored.float() * scale - values).abs() <= scale * 0.5001).all()
        assert (affine.quantize_channels(-weight, scales, axis, limit) == -whole).all()


def test_a_channel_of_zeros_takes_the_largest_scale_of_the_others():
    weight = torch.tensor([[1.27, 0.0], [0.0, 0.0], [0.0, -12.7]])
    scales = affine.channel_scales(weight, 0, 127)
    torch.testing.assert_close(scales, torch.tensor([0.01, 0.1, 0.1]))
    assert affine.quantize_channels(weight, scales, 0, 127).tolist() == [[127, 0], [0, 0], [0, -127]]
    assert affine.channel_scales(torch.zeros(2, 3), 0, 127).tolist() == [1.0, 1.0]


def test_a_bias_is_stored_in_units_of_both_scales():
    weight_scales = torch.tensor([0.01, 0.02])
    units = affine.bias_scales(0.05, weight_scales)
    assert units.dtype == torch.float32
    torch.testing.assert_close(units, torch.tensor([5e-4, 1e-3]))
    assert affine.quantize_bias(torch.tensor([1.0, -0.5]), units).tolist() == [2000, -500]


def test_a_bias_that_would_not_fit_raises_the_scale_of_its_channel_alone():
    scales = torch.tensor([1e-9, 1e-2])
    raised = affine.fit_bias(scales, torch.tensor([50.0, 50.0]), 0.01)
    assert raised[1] == scales[1]
    whole = affine.quantize_bias(torch.tensor([50.0, 50.0]), affine.bias_scales(0.01, raised))
    assert abs(whole[0].item() - affine.BIAS_LIMIT) <= 64  # float32 rounding of the scale
    unfit = affine.quantize_bias(torch.tensor([50.0]), affine.bias_scales(0.01, scales[:1]))
    assert unfit.item() == 2**31 - 1  # what happens without: the bias saturates
