"""The normalisation of an input goes into the first convolution, also where that pads with the mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress.passes.fuse_input_normalization import FuseInputNormalization
from tests.passes.fusing import assert_declines, assert_fuses
from tests.passes.models import Apply, Case

IMAGE = (2, 3, 6, 5)


def case(name: str, function: Callable[[nn.Module, Tensor], object], conv: Callable[[], nn.Module]) -> Case:
    """A function of a model with channel images `m` and `s` and a convolution `c`."""
    return Case(
        name,
        lambda: Apply(function, c=conv(), m=torch.rand(3, 1, 1), s=torch.rand(3, 1, 1)),
        IMAGE,
    )


def usual(m: nn.Module, x: Tensor) -> Tensor:
    return m.c((x - m.m) / m.s)


def one_mean(m: nn.Module, x: Tensor) -> Tensor:
    return m.c((x - 0.45) / m.s)


def of_bytes(m: nn.Module, x: Tensor) -> Tensor:
    return m.c(x / 255.0 * 2 - 1)


def read_twice(m: nn.Module, x: Tensor) -> Tensor:
    return m.c((x - m.m) / m.s).mean() + x.sum()


FUSED = (
    (case("unpadded", usual, lambda: nn.Conv2d(3, 4, 3, stride=2)), "conv2d", 1),
    (case("input_read_elsewhere", read_twice, lambda: nn.Conv2d(3, 4, 3)), "conv2d mean sum add", 1),
    (case("padded_one_mean", one_mean, lambda: nn.Conv2d(3, 4, 3, padding=(1, 2))), "pad conv2d", 1),
    (case("padded_bytes", of_bytes, lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False)), "pad conv2d", 1),
    (case("grouped", of_bytes, lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3)), "pad conv2d", 1),
)


@pytest.mark.parametrize(("found", "after", "changes"), FUSED, ids=lambda item: getattr(item, "name", ""))
def test_goes_into_the_first_convolution(found: Case, after: str, changes: int) -> None:
    assert_fuses(FuseInputNormalization(), found, after, changes)


DECLINED = (
    (
        case("padded", usual, lambda: nn.Conv2d(3, 4, 3, padding=1)),
        "pads with zeros, which stand for a mean of its own in each channel",
    ),
    (
        case("same", one_mean, lambda: nn.Conv2d(3, 4, 3, padding="same")),
        "pads in a way that has no explicit form",
    ),
    (case("one_step", lambda m, x: m.c(x - 0.5), lambda: nn.Conv2d(3, 4, 3, padding=1)), "costs what the"),
    (case("used", lambda m, x: m.c(y := (x - 0.5) / 3) + y.sum(), lambda: nn.Conv2d(3, 4, 3)), "consumers"),
    (case("no_layer", lambda m, x: ((x - 0.5) / 3).relu(), lambda: nn.Conv2d(3, 4, 3)), "has no weight"),
)


@pytest.mark.parametrize(("found", "reason"), DECLINED, ids=lambda item: getattr(item, "name", ""))
def test_declines(found: Case, reason: str) -> None:
    assert_declines(FuseInputNormalization(), found, reason)


def test_the_padding_is_the_mean_written_out() -> None:
    outcome = assert_fuses(FuseInputNormalization(), FUSED[2][0], "pad conv2d")
    lines = str(outcome.program).splitlines()
    assert [line.partition("  #")[0] for line in lines if "pad" in line] == [
        "  pad: f64[batch, 3, 8, 9] = pad(x, [2, 2, 1, 1], constant, 0.45)",
        "  conv2d: f64[batch, 4, 6, 7] = conv2d(pad, c_weight, c_bias, [1, 1], [0, 0])",
    ]
