"""Equalization changes no output, lowers the predicted noise, and stops where a factor does not commute."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.equalize_channels import EqualizeChannels
from tests.passes.models import Apply, Case, Chain, assert_same_function

SPREAD = 2.0 ** torch.linspace(-6, 6, 8)


def spread(model: nn.Module, first: str, second: str) -> nn.Module:
    """Rescale the channels between two layers, the function staying."""
    a, b = model.get_submodule(first), model.get_submodule(second)
    along = 0 if b.weight.shape[1] == 1 else 1  # depthwise or dense
    with torch.no_grad():
        a.weight.mul_(_laid(a.weight, 0))
        a.bias.mul_(SPREAD)
        b.weight.div_(_laid(b.weight, along))
    return model


def _laid(weight: torch.Tensor, axis: int) -> torch.Tensor:
    return SPREAD.reshape([-1 if dim == axis else 1 for dim in range(weight.dim())])


def net(*between: nn.Module, first: nn.Module | None = None, second: nn.Module | None = None) -> nn.Module:
    """Two layers with spread channels, and what stands between them."""
    middle = {f"m{index}": layer for index, layer in enumerate(between)}
    layers = {"a": first or nn.Conv2d(3, 8, 3), **middle, "b": second or nn.Conv2d(8, 4, 3)}
    return spread(Chain(**layers), "a", "b")


def depthwise() -> nn.Module:
    layers = {"a": nn.Conv2d(3, 8, 1), "r": nn.ReLU(), "b": nn.Conv2d(8, 8, 3, groups=8, padding=1)}
    return spread(Chain(**layers, s=nn.ReLU(), c=nn.Conv2d(8, 4, 1)), "a", "b")


def linears() -> nn.Module:
    return net(nn.ReLU(), first=nn.Linear(5, 8), second=nn.Linear(8, 3))


def flattened() -> nn.Module:
    return net(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), second=nn.Linear(8, 3))


CASES = [
    Case("conv-relu-conv", lambda: net(nn.ReLU()), (4, 3, 8, 8)),
    Case("pool", lambda: net(nn.LeakyReLU(0.1), nn.MaxPool2d(2)), (4, 3, 12, 12)),
    Case("depthwise", depthwise, (4, 3, 8, 8)),
    Case("linear", linears, (6, 5)),
    Case("flattened", flattened, (4, 3, 8, 8)),
]


def captured(case: Case) -> tuple[Program, torch.Tensor]:
    torch.manual_seed(0)
    model, example = case.build().eval(), case.example()
    return capture(model, (example,)), example


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_bits_and_less_noise(case):
    program, example = captured(case)
    outcome = EqualizeChannels([example], absorb=False).run(program)
    well_formed(outcome.program)
    assert any(line.startswith(("conv2d with", "linear with")) for line in outcome.changed)
    inputs = torch.randn(5, *example.shape[1:], generator=torch.Generator().manual_seed(3)) * 9
    with torch.no_grad():
        assert torch.equal(program(inputs), outcome.program(inputs))
    assert_same_function(program.to(torch.float64), outcome.program.to(torch.float64))
    noises = re.search(r"noise (\S+) to (\S+)", outcome.changed[0])
    assert noises is not None
    assert float(noises[2]) < float(noises[1]) / 100


def test_before_and_after():
    program, example = captured(CASES[0])
    outcome = EqualizeChannels([example], absorb=False).run(program)
    (line,) = outcome.changed
    assert line.startswith("conv2d with conv2d_1: scales ")
    assert next(str(item) for item in outcome.declined if item.site == "conv2d_1").startswith(
        "conv2d_1: conv2d_1 is an output"
    )
    ranges = [
        p.get_submodule("a").weight.detach().abs().amax((1, 2, 3))
        for p in (program.module, outcome.program.module)
    ]
    assert ranges[1].max() / ranges[1].min() < ranges[0].max() / ranges[0].min() / 50
    assert str(program.graph) == str(outcome.program.graph)


def declined(model: nn.Module, shape: tuple[int, ...], site: str = "conv2d") -> str:
    torch.manual_seed(0)
    example = torch.randn(shape)
    program = capture(model.eval(), (example,))
    outcome = EqualizeChannels([example]).run(program)
    assert outcome.program is program
    return next(item.reason for item in outcome.declined if item.site == site)


def test_what_does_not_commute_is_declined_with_the_reason():
    assert "clamps all channels" in declined(net(nn.ReLU6()), (2, 3, 8, 8))
    assert "hardswish" in declined(net(nn.Hardswish()), (2, 3, 8, 8))
    assert "gelu" in declined(net(nn.GELU()), (2, 3, 8, 8))
    assert "transposed" in declined(Chain(a=nn.Conv2d(3, 8, 3), b=nn.ConvTranspose2d(8, 4, 3)), (2, 3, 8, 8))


def test_a_residual_sum_and_a_shared_weight_are_declined():
    def residual(m, x):
        y = m.a(x)
        return m.b(F.relu(y)) + y

    parts = {"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1)}
    assert "add" in declined(Apply(residual, **parts), (2, 3, 8, 8))
    twice = Apply(lambda m, x: m.a(F.relu(m.a(x))), a=nn.Conv2d(3, 3, 1))
    assert "shared" in declined(twice, (2, 3, 8, 8))


def test_balanced_channels_stay():
    torch.manual_seed(0)
    model = Chain(a=nn.Linear(4, 4), r=nn.ReLU(), b=nn.Linear(4, 4))
    with torch.no_grad():
        model.a.weight.copy_(torch.eye(4))
        model.a.bias.zero_()
        model.b.weight.fill_(0.5)
    program = capture(model.eval(), (torch.randn(64, 4),))
    outcome = EqualizeChannels([program.example.args[0].sign() * torch.ones(64, 4)]).run(program)
    assert outcome.program is program


def test_two_readers_share_the_scales():
    def fork(m, x):
        y = F.relu(m.a(x))
        return m.b(y), m.c(y)

    torch.manual_seed(0)
    model = Apply(fork, a=nn.Linear(5, 8), b=nn.Linear(8, 3), c=nn.Linear(8, 2))
    spread(model, "a", "b")
    with torch.no_grad():
        model.c.weight.div_(SPREAD)
    example = torch.randn(16, 5)
    program = capture(model.eval(), (example,))
    outcome = EqualizeChannels([example]).run(program)
    assert outcome.changed[0].startswith("linear with linear_1, linear_2")
    for before, after in zip(program(example), outcome.program(example), strict=True):
        assert torch.equal(before, after)


def test_a_constant_moves_into_the_next_bias_and_the_function_stays_on_the_data():
    torch.manual_seed(0)
    model = Chain(a=nn.Conv2d(3, 8, 3, padding=1), r=nn.ReLU(), b=nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        model.a.bias[:4] += 100.0
    example = torch.randn(8, 3, 6, 6)
    program = capture(model, (example,))
    outcome = EqualizeChannels([example]).run(program)
    assert "4 constants moved on" in outcome.changed[0]
    assert outcome.program.module.get_submodule("a").bias.max() < program.module.get_submodule("a").bias.max()
    wide, narrow = program.to(torch.float64), outcome.program.to(torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(wide(example.double()), narrow(example.double()), rtol=1e-5, atol=1e-5)


def test_a_constant_does_not_move_past_padding():
    torch.manual_seed(0)
    model = Chain(a=nn.Conv2d(3, 8, 3), r=nn.ReLU(), b=nn.Conv2d(8, 4, 3, padding=1)).eval()
    with torch.no_grad():
        model.a.bias[:4] += 100.0
    example = torch.randn(8, 3, 6, 6)
    outcome = EqualizeChannels([example]).run(capture(model, (example,)))
    assert not any("constants" in line for line in outcome.changed)


def spread_square(*middle: nn.Module, turn: tuple[int, ...]) -> nn.Module:
    """A convolution of eight channels on eight rows, turned before a linear."""
    layers = {f"m{index}": layer for index, layer in enumerate(middle)}
    turned = Apply(lambda m, x: m.b(m.a(x).permute(*turn)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 4), **layers)
    with torch.no_grad():
        turned.a.weight.mul_(_laid(turned.a.weight, 0))
        turned.b.weight.div_(_laid(turned.b.weight, 1))
    return turned


def test_channels_are_followed_forward_through_a_permutation():
    case = Case("last", lambda: spread_square(turn=(0, 2, 3, 1)), (4, 3, 8, 8))
    program, example = captured(case)
    outcome = EqualizeChannels([example], absorb=False).run(program)
    assert outcome.changed[0].startswith("conv2d with linear")
    assert_same_function(program.to(torch.float64), outcome.program.to(torch.float64))


def test_rows_are_not_taken_for_channels():
    """Eight rows and eight channels: the inverse permutation would fit, and be another function."""
    assert "sums over another axis" in declined(spread_square(turn=(0, 3, 1, 2)), (4, 3, 8, 8))


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.MaxPool1d(3, 1, 1), nn.AvgPool1d(3, 1, 1)])
def test_pooling_over_the_channels_is_declined(pool: nn.Module):
    width = 4 if pool.kernel_size == 2 else 8
    model = Chain(a=nn.Linear(5, 8), p=pool, b=nn.Linear(width, 3))
    with torch.no_grad():
        model.a.weight.mul_(_laid(model.a.weight, 0))
        model.b.weight.div_(SPREAD[:width])
    assert "pools over the channels" in declined(model, (16, 6, 5), "linear")
