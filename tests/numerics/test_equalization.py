"""The predicted noise is the noise that quantizing really adds, and the scales chosen are the best tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxcompress.numerics.affine import asymmetric, channel_scales, dequantize, quantize, quantize_channels
from fxcompress.numerics.equalization import ChannelStatistics, Reader, best_scales


def case(seed: int, spread: float) -> tuple[Tensor, Tensor]:
    """Inputs `[rows, channels]` of different widths, weights `[outputs, channels]` that undo them."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.exp2(torch.linspace(-spread, spread, 12))
    x = torch.randn(4000, 12, generator=generator).relu() * factors
    return x, torch.randn(8, 12, generator=generator) / factors


def reader(x: Tensor, weight: Tensor) -> Reader:
    seen = ChannelStatistics()
    for part in x.split(1000):
        seen.update(part, 1)
    channel = torch.arange(weight.shape[1]).expand(weight.shape)
    return Reader(weight.double()[:, :, None], channel, seen, (x @ weight.T).double().square().mean(0))


def real_noise(x: Tensor, weight: Tensor, scales: Tensor) -> float:
    """The noise of a layer run through the quantizers, as a mean share of its outputs' power."""
    exact = x.double() @ weight.double().T
    x, weight = (x / scales).float(), (weight * scales).float()
    scheme = asymmetric(float(x.min()), float(x.max()))
    units = channel_scales(weight, 0, 127)
    real_weight = quantize_channels(weight, units, 0, 127).double() * units.double()[:, None]
    found = dequantize(quantize(x, scheme), scheme).double() @ real_weight.T
    return float(((found - exact).square().mean(0) / exact.square().mean(0)).mean())


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_the_prediction_is_what_quantizing_adds(spread):
    x, weight = case(0, spread)
    for scales in (torch.ones(12), torch.exp2(torch.linspace(-spread, spread, 12).round())):
        predicted = reader(x, weight).noise(scales.double())
        # a rectifier's zeros are exact, which the prediction leaves out: it may be up to twice too high
        assert real_noise(x, weight, scales) / 1.5 < predicted < real_noise(x, weight, scales) * 3.0


def test_the_best_scales_undo_a_spread_and_are_powers_of_two():
    x, weight = case(1, 6.0)
    scales, before, after = best_scales([reader(x, weight)])
    assert torch.equal(scales.log2(), scales.log2().round())
    assert after < before / 100
    assert real_noise(x, weight, scales) < real_noise(x, weight, torch.ones(12)) / 30


def test_nothing_is_done_where_nothing_helps():
    x, weight = case(2, 0.0)
    x, weight = torch.ones_like(x), weight.sign()
    scales, before, after = best_scales([reader(x, weight)])
    assert torch.equal(scales, torch.ones(12, dtype=torch.float64))
    assert before == after


def test_dead_channels_and_dead_outputs_are_left_alone():
    x, weight = case(3, 3.0)
    x[:, 0] = 0.0
    weight[:, 1] = 0.0
    weight[2] = 0.0
    scales, before, after = best_scales([reader(x, weight)])
    assert scales[:2].tolist() == [1.0, 1.0]
    assert after <= before
    nothing = best_scales([reader(torch.zeros_like(x), weight)])
    assert torch.equal(nothing[0], torch.ones(12, dtype=torch.float64))


def test_statistics_of_a_stream_are_those_of_everything():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    seen = ChannelStatistics()
    for part in (x[:100], x[:0], x[100:]):
        seen.update(part, 1)
    assert torch.equal(seen.low, x.amin(0).double())
    assert torch.equal(seen.high, x.amax(0).double())
    torch.testing.assert_close(seen.power, x.double().square().mean(0), rtol=1e-6, atol=0)
    constant = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(
        seen.power_without(constant), (x.double() - constant).square().mean(0), rtol=1e-5, atol=1e-6
    )
