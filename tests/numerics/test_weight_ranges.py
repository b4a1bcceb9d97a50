"""The search never does worse on the weights than the largest magnitude, and finds what is worth clamping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxcompress.numerics.affine import channel_scales, quantize_channels
from fxcompress.numerics.weight_ranges import mse_channel_scales


def errors(weight: Tensor, scales: Tensor, axis: int, limit: int) -> Tensor:
    """The squared error of each channel through the quantizer that stores weights."""
    shape = [-1 if dim == axis else 1 for dim in range(weight.dim())]
    real = quantize_channels(weight, scales, axis, limit).double() * scales.double().reshape(shape)
    return (real - weight.double()).square().movedim(axis, 0).flatten(1).sum(1)


@pytest.mark.parametrize("limit", [127, 64, 7])
@pytest.mark.parametrize("axis", [0, 1])
def test_no_channel_is_worse_and_few_bits_clamp(limit, axis):
    weight = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(limit))
    plain, found = (scales(weight, axis, limit) for scales in (channel_scales, mse_channel_scales))
    assert (errors(weight, found, axis, limit) <= errors(weight, plain, axis, limit) * (1 + 1e-6)).all()
    assert (found <= plain).all()
    if limit == 7:
        assert (found < plain).any()


def test_one_scale_for_all_and_channels_of_zeros():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weight[1] = 0.0
    assert mse_channel_scales(weight, 0, 127).shape == (4,)
    assert bool(mse_channel_scales(weight, 0, 127).gt(0).all())
    assert mse_channel_scales(weight, None, 127).shape == (1,)
    assert bool(mse_channel_scales(torch.zeros(2, 2), 0, 127).isfinite().all())
