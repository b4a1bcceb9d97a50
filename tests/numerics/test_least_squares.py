"""Ridge regression from moments, against numpy on the rows themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fxcompress.numerics.least_squares import Fit, Moments, best_fit, ridge

GROUPS, ROWS, INPUTS, OUTPUTS = 2, 40, 5, 3


def rows(seed: int, count: int = ROWS, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs away from zero, and residuals that depend on them, with an offset and noise."""
    generator = torch.Generator().manual_seed(seed)
    law = torch.randn(
        GROUPS, INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    x = torch.randn(GROUPS, count, INPUTS, generator=generator, dtype=torch.float64) + 2.0
    r = x @ law + 1.5 + noise * torch.randn(GROUPS, count, OUTPUTS, generator=generator, dtype=torch.float64)
    return x, r


def moments(x: torch.Tensor, r: torch.Tensor, pieces: int = 4) -> Moments:
    """Streamed in uneven pieces."""
    made = Moments.empty(x.shape[0], x.shape[2], r.shape[2])
    for x_part, r_part in zip(x.chunk(pieces, 1), r.chunk(pieces, 1), strict=True):
        made.update(x_part, r_part)
    return made


def test_without_damping_it_is_lstsq() -> None:
    x, r = rows(0)
    fit = ridge(moments(x, r), 0.0)
    for group in range(GROUPS):
        design = np.hstack([x[group].numpy(), np.ones((ROWS, 1))])
        expected = np.linalg.lstsq(design, r[group].numpy(), rcond=None)[0]
        assert np.abs(fit.weight[group].numpy() - expected[:-1]).max() < 1e-9
        assert np.abs(fit.bias[group].numpy() - expected[-1]).max() < 1e-9


@pytest.mark.parametrize("intercept", [True, False])
def test_damping_is_relative_to_the_mean_square(intercept: bool) -> None:
    """The twin: rows appended that pull every weight, but not the bias, to zero."""
    x, r = rows(1)
    fit = ridge(moments(x, r), 0.1, intercept=intercept)
    for group in range(GROUPS):
        a, b = x[group].numpy(), r[group].numpy()
        if intercept:
            a, b = a - a.mean(0), b - b.mean(0)
        pull = math.sqrt(0.1 * np.square(a).sum() / INPUTS)
        stacked = np.vstack([a, pull * np.eye(INPUTS)]), np.vstack([b, np.zeros((INPUTS, OUTPUTS))])
        expected = np.linalg.lstsq(*stacked, rcond=None)[0]
        assert np.abs(fit.weight[group].numpy() - expected).max() < 1e-9
        if not intercept:
            assert not fit.bias.any()


def test_errors_follow_from_the_moments() -> None:
    x, r = rows(2)
    fit = Fit(
        torch.full((GROUPS, INPUTS, OUTPUTS), 0.2).double(), torch.full((GROUPS, OUTPUTS), -0.7).double()
    )
    direct = (r - x @ fit.weight - fit.bias[:, None]).square().sum(1)
    assert torch.allclose(moments(x, r).errors(fit), direct, rtol=1e-10)


def test_an_infinite_damping_fits_the_bias_alone() -> None:
    x, r = rows(3)
    fit = ridge(moments(x, r), math.inf)
    assert not fit.weight.any()
    assert torch.allclose(fit.bias, r.mean(1))


def test_constant_inputs_and_fewer_rows_than_unknowns_are_damped() -> None:
    x, r = rows(4, count=3)
    x[..., 0] = 7.0
    fit = ridge(moments(x, r, pieces=1), 1e-3)
    assert bool(fit.weight.isfinite().all())
    assert float(fit.weight[:, 0].abs().max()) < 1e-9  # a constant explains nothing beside the bias


def test_inputs_that_are_all_zero_give_no_weight() -> None:
    x, r = rows(5)
    fit = ridge(moments(torch.zeros_like(x), r), 0.0)
    assert float(fit.weight.abs().max()) == 0.0


def test_the_damping_that_does_best_on_other_rows_is_taken_per_output() -> None:
    """One output is a law of the inputs, the other is noise: it must not be fitted."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(1, 30, 20, generator=generator, dtype=torch.float64)
    r = torch.stack([x[0, :, 0] * 2.0, torch.randn(30, generator=generator, dtype=torch.float64)], -1)[None]
    fitted, judged = moments(x[:, :24], r[:, :24], 1), moments(x[:, 24:], r[:, 24:], 1)
    fit = best_fit(fitted, judged, (1e-6, 1.0, 1e3), intercept=False)
    assert abs(float(fit.weight[0, 0, 0]) - 2.0) < 1e-3
    assert float(fit.weight[0, :, 1].norm()) < 0.05
    assert bool((judged.errors(fit) <= judged.rr).all())


def test_nothing_is_fitted_where_nothing_helps() -> None:
    x, r = rows(7)
    fitted, judged = moments(x, r), moments(x, -r)
    fit = best_fit(fitted, judged, (1e-3, 1.0))
    assert not fit.weight.any()
    assert not fit.bias.any()


def test_memory_does_not_depend_on_the_number_of_rows() -> None:
    made = Moments.empty(1, INPUTS, OUTPUTS)
    sizes = []
    for seed in range(5):
        x, r = rows(seed)
        made.update(x[:1], r[:1])
        sizes.append(sum(value.numel() for value in vars(made).values() if isinstance(value, torch.Tensor)))
    assert len(set(sizes)) == 1
    assert made.count == 5 * ROWS


def test_half_precision_rows_are_widened() -> None:
    x, r = rows(9)
    whole, half = moments(x.bfloat16().double(), r.bfloat16().double()), moments(x.bfloat16(), r.bfloat16())
    assert torch.allclose(half.xx, whole.xx, rtol=1e-5)
    assert torch.allclose(half.rr, whole.rr, rtol=1e-5)


def test_a_nan_is_seen() -> None:
    x, r = rows(8)
    assert moments(x, r).finite
    x[0, 0, 0] = math.nan
    assert not moments(x, r).finite


def test_weights_that_may_not_change_leave_their_mean_to_the_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1.0 + torch.rand(400, 3, generator=generator).double()
    r = x @ torch.tensor([[1.0], [2.0], [-3.0]]).double()
    moments = Moments.empty(1, 3, 1)
    moments.update(x[None], r[None])
    free = torch.tensor([True, False, True])[None, :, None]
    fit = best_fit(moments, moments, (1e-4,), free=free)
    assert float(fit.weight[0, 1, 0]) == 0.0
    left = r[:, 0] - (x @ fit.weight[0])[:, 0] - fit.bias[0]
    assert abs(float(left.mean())) < 1e-9
    assert float(left.square().mean()) < 0.35  # what the second input moves: four times its variance of 1/12
