"""The algebra on kernels against what convolutions compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxcompress.numerics import kernel_blocks as kernels
from fxcompress.numerics.kernel_blocks import Layout

DOUBLE = torch.float64


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


def call(layout: Layout, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    if layout == "columns":
        return (x.flatten(1) @ weight)[..., None, None]
    if layout == "mirrored":
        return functional.conv_transpose2d(x, weight, groups=groups)
    return functional.conv2d(x, weight, groups=groups)


CASES: tuple[tuple[Layout, tuple[int, ...], int], ...] = (
    ("rows", (6, 2, 3, 3), 2),
    ("rows", (6, 4, 1, 1), 1),
    ("columns", (4, 6), 1),
    ("mirrored", (4, 3, 1, 1), 2),
)
each = pytest.mark.parametrize(("layout", "shape", "groups"), CASES)


@each
def test_blocks_are_a_way_there_and_back(layout: Layout, shape: tuple[int, ...], groups: int) -> None:
    weight = random(*shape)
    blocks = kernels.to_blocks(weight, groups, layout)
    assert blocks.shape[:3] == (groups, 6 // groups, 4 // groups)
    assert torch.equal(kernels.from_blocks(blocks, DOUBLE, layout), weight)


@each
def test_scales_and_shifts_pass_through(layout: Layout, shape: tuple[int, ...], groups: int) -> None:
    weight, side = random(*shape), 1 if layout == "columns" else 4
    x, before, shift, after = random(2, 4, side, side), random(4), random(4), random(6)
    moved = x * before[:, None, None] + shift[:, None, None]
    expected = call(layout, moved, weight, groups) * after[:, None, None]
    blocks = kernels.scale_outputs(kernels.to_blocks(weight, groups, layout), after)
    bias = kernels.pass_shift(blocks, shift)
    scaled = kernels.from_blocks(kernels.scale_inputs(blocks, before), DOUBLE, layout)
    found = call(layout, x, scaled, groups) + bias[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("first", "second"), [((1, 1), (1, 1)), ((1, 1), (2, 3)), ((2, 3), (1, 1))])
def test_composition_is_one_after_the_other(first: tuple[int, int], second: tuple[int, int]) -> None:
    w1, w2, x = random(5, 3, *first), random(4, 5, *second), random(2, 3, 6, 6)
    made = kernels.compose(kernels.to_blocks(w1), kernels.to_blocks(w2))
    found = functional.conv2d(x, kernels.from_blocks(made, DOUBLE))
    expected = functional.conv2d(functional.conv2d(x, w1), w2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_placed_kernel_computes_the_same_with_more_padding() -> None:
    weight, x = random(4, 3, 1, 3), random(2, 3, 5, 5)
    placed = kernels.from_blocks(kernels.place_kernel(kernels.to_blocks(weight), (3, 5), (1, 1)), DOUBLE)
    found = functional.conv2d(x, placed, padding=(1, 2))
    expected = functional.conv2d(x, weight, padding=(0, 1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_identity_kernel_returns_its_input() -> None:
    x, scale = random(2, 6, 3, 3), random(6)
    weight = kernels.from_blocks(kernels.identity_kernel(2, 3, 2, scale), DOUBLE)
    assert torch.equal(functional.conv2d(x, weight, groups=2), x * scale[:, None, None])
