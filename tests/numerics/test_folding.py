"""Batch-norm folding against the operators themselves, in float64, and against slow loops."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fxcompress.numerics.folding import (
    ChannelAffine,
    batch_norm_as_affine,
    fold_bias,
    scale_rows,
    scale_transposed,
)


def statistics(channels: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, variance, gamma and beta in float64, the variances over four decades."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, channels, generator=generator, dtype=torch.float64)
    return draw[0], (draw[1] * 2).exp(), draw[2], draw[3]


@given(
    channels=st.integers(1, 9),
    eps=st.sampled_from([1e-12, 1e-5, 1e-3, 0.5]),
    affine=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_batch_norm_is_affine(channels: int, eps: float, affine: bool, seed: int) -> None:
    mean, var, gamma, beta = statistics(channels, seed)
    if not affine:
        gamma, beta = torch.ones_like(gamma), torch.zeros_like(beta)
    z = torch.randn(5, channels, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = functional.batch_norm(z, mean, var, gamma, beta, False, 0.1, eps)
    found = batch_norm_as_affine(mean, var, gamma if affine else None, beta if affine else None, eps)
    torch.testing.assert_close(
        z * found.scale[:, None] + found.shift[:, None],
        expected,
        rtol=1e-11,
        atol=1e-11 * float(expected.abs().max()),
    )


def test_wrong_eps_is_visible_at_this_tolerance() -> None:
    mean, var, gamma, beta = statistics(6, 0)
    right = batch_norm_as_affine(mean, var, gamma, beta, 1e-5)
    wrong = batch_norm_as_affine(mean, var, gamma, beta, 1.1e-5)
    assert not torch.allclose(right.scale, wrong.scale, rtol=1e-11, atol=0)


@given(groups=st.integers(1, 4), inner=st.integers(1, 3), outer=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_scale_transposed_equals_the_loop(groups: int, inner: int, outer: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * inner, outer, 2, generator=generator, dtype=torch.float64)
    scale = torch.randn(groups * outer, generator=generator, dtype=torch.float64)
    expected = weight.clone()
    for i in range(groups * inner):
        for j in range(outer):
            expected[i, j] *= scale[(i // inner) * outer + j]
    torch.testing.assert_close(scale_transposed(weight, scale, groups), expected, rtol=0, atol=0)


@given(groups=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_scaled_weight_scales_the_output(groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2 * groups, 7, generator=generator, dtype=torch.float64)
    scale = torch.randn(3 * groups, generator=generator, dtype=torch.float64)
    plain = torch.randn(3 * groups, 2, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        functional.conv1d(x, scale_rows(plain, scale), groups=groups),
        functional.conv1d(x, plain, groups=groups) * scale[:, None],
        rtol=1e-12,
        atol=1e-12,
    )
    mirrored = torch.randn(2 * groups, 3, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        functional.conv_transpose1d(x, scale_transposed(mirrored, scale, groups), groups=groups),
        functional.conv_transpose1d(x, mirrored, groups=groups) * scale[:, None],
        rtol=1e-12,
        atol=1e-12,
    )


def test_axis_one_scales_columns() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    scale = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    assert scale_rows(weight, scale, axis=1).tolist() == [[0.0, 10.0, 200.0], [3.0, 40.0, 500.0]]


def test_rounds_once_to_the_dtype_of_the_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, generator=generator)
    scale = torch.randn(8, generator=generator, dtype=torch.float64)
    scaled = scale_rows(weight, scale)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, (weight.double() * scale[:, None]).float())


def test_bias_is_scaled_and_shifted() -> None:
    affine = ChannelAffine(torch.tensor([2.0, 3.0]).double(), torch.tensor([0.5, -1.0]).double())
    assert fold_bias(torch.tensor([1.0, 1.0]), affine, torch.float32).tolist() == [2.5, 2.0]
    assert fold_bias(None, affine, torch.float32).tolist() == [0.5, -1.0]
