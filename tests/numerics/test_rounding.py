"""The descent never makes outputs worse, finds the best rounding of small layers, and keeps to its budget."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from fxcompress.numerics.least_squares import Fit, Moments
from fxcompress.numerics.rounding import Budget, descend, other_neighbours


def layer(inputs: int, outputs: int, rows: int = 200, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated inputs `[1, rows, inputs]`, exact weights in units of their scale, nearest integers."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator)
    x = (torch.randn(1, rows, inputs, generator=generator) @ mix).relu()
    exact = torch.randn(1, inputs, outputs, generator=generator, dtype=torch.float64) * 3
    return x, exact, exact.round()


def moments_of(x: Tensor, exact: Tensor, whole: Tensor) -> Moments:
    moments = Moments.empty(x.shape[0], x.shape[2], exact.shape[2])
    moments.update(x.double(), x.double() @ (exact - whole))
    return moments


def error(x: Tensor, exact: Tensor, whole: Tensor, *, intercept: bool) -> Tensor:
    """The squared error of each output, by the rows themselves."""
    lacking = x.double() @ (exact - whole)
    if intercept:
        lacking = lacking - lacking.mean(1, keepdim=True)
    return lacking.square().sum(1)


@pytest.mark.parametrize("intercept", [False, True])
def test_no_output_gets_worse_and_most_get_better(intercept):
    x, exact, whole = layer(24, 16)
    moves = other_neighbours(exact, whole, 127)
    change = descend(moments_of(x, exact, whole), moves, intercept=intercept)
    before, after = (error(x, exact, one, intercept=intercept) for one in (whole, whole + change))
    assert (after <= before * (1 + 1e-9)).all()
    assert after.sum() < before.sum() * 0.7


def test_it_is_near_the_best_of_all_roundings():
    x, exact, whole = layer(8, 6)
    moves = other_neighbours(exact, whole, 127)
    change = descend(moments_of(x, exact, whole), moves, intercept=False)
    found = error(x, exact, whole + change, intercept=False)
    every = [
        error(
            x, exact, whole + moves * torch.tensor(bits, dtype=torch.float64)[None, :, None], intercept=False
        )
        for bits in product((0.0, 1.0), repeat=8)
    ]
    best = torch.stack(every).amin(0)
    nearest = error(x, exact, whole, intercept=False)
    assert found.sum() <= best.sum() + 0.25 * (nearest.sum() - best.sum())


def test_the_error_that_moments_tell_is_that_of_the_rows():
    x, exact, whole = layer(10, 4)
    moments = moments_of(x, exact, whole)
    change = descend(moments, other_neighbours(exact, whole, 127), intercept=False)
    told = moments.errors(Fit(change, torch.zeros(1, 4, dtype=torch.float64)))
    torch.testing.assert_close(told, error(x, exact, whole + change, intercept=False))


def test_neighbours_are_on_the_other_side_and_inside_the_limit():
    exact = torch.tensor([1.2, 0.8, -1.2, 2.0, 127.4, -126.7])
    whole = exact.round().clamp(-127, 127)
    assert other_neighbours(exact, whole, 127).tolist() == [1.0, -1.0, -1.0, 0.0, 0.0, 1.0]


def test_groups_are_descended_side_by_side():
    parts = [layer(6, 3, seed=seed) for seed in (1, 2)]
    x, exact, whole = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    both = descend(moments_of(x, exact, whole), other_neighbours(exact, whole, 127), intercept=True)
    for index, part in enumerate(parts):
        alone = descend(moments_of(*part), other_neighbours(part[1], part[2], 127), intercept=True)
        assert torch.equal(both[index], alone[0])


def test_steps_work_and_seconds_end_it():
    x, exact, whole = layer(24, 16)
    moments, moves = moments_of(x, exact, whole), other_neighbours(exact, whole, 127)
    one = descend(moments, moves, intercept=False, budget=Budget(steps=1))
    assert int((one != 0).sum(1).max()) == 1
    assert torch.equal(one, descend(moments, moves, intercept=False, budget=Budget(work=1.0)))
    ticks = iter(range(100))
    budget = Budget(seconds=2.5, clock=lambda: float(next(ticks)))
    assert int((descend(moments, moves, intercept=False, budget=budget) != 0).sum(1).max()) <= 2
