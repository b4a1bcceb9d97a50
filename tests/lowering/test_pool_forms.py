from __future__ import annotations

import numpy as np
import pytest

from fxcompress.lowering.pool_forms import use_global_average_pool
from tests.lowering.graphs import assert_declines, assert_rewrites, floats, model_of

X = {"x": floats(2, 3, 4, 5)}


@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2], [2, -1]])
def test_mean_that_keeps_dimensions_is_a_pool(axes: list[int]) -> None:
    model = model_of(
        "g (float[N,3,4,5] x) => (float[N,3,1,1] y) { y = ReduceMean<keepdims=1>(x, axes) }",
        {"axes": np.array(axes)},
    )
    assert_rewrites(use_global_average_pool, model, "y = GlobalAveragePool(x)", X, exact=False)


def test_mean_that_drops_dimensions_is_a_pool_and_a_squeeze() -> None:
    model = model_of(
        "g (float[N,3,4,5] x) => (float[N,3] y) { y = ReduceMean<keepdims=0>(x, axes) }",
        {"axes": np.array([2, 3])},
    )
    after = assert_rewrites(
        use_global_average_pool,
        model,
        "y/GlobalAveragePool = GlobalAveragePool(x)\ny = Squeeze(y/GlobalAveragePool, y/axes)",
        X,
        exact=False,
    )
    assert [node.name for node in after.graph.node] == ["y/GlobalAveragePool", "y"]


def test_three_spatial_dimensions() -> None:
    model = model_of(
        "g (float[N,2,3,4,5] x) => (float[N,2,1,1,1] y) { y = ReduceMean<keepdims=1>(x, axes) }",
        {"axes": np.array([2, 3, 4])},
    )
    feeds = {"x": floats(2, 2, 3, 4, 5)}
    assert_rewrites(use_global_average_pool, model, "y = GlobalAveragePool(x)", feeds, exact=False)


@pytest.mark.parametrize("axes", [[2], [1, 2], [1, 2, 3], [0, 2, 3]])
def test_declines_other_axes(axes: list[int]) -> None:
    model = model_of(
        "g (float[N,3,4,5] x) => (float[a,b,c,d] y) { y = ReduceMean<keepdims=1>(x, axes) }",
        {"axes": np.array(axes)},
    )
    assert_declines(use_global_average_pool, model)


def test_declines_a_mean_over_the_last_dimension_of_tokens() -> None:
    model = model_of(
        "g (float[N,7,4] x) => (float[N,7,1] y) { y = ReduceMean<keepdims=1>(x, axes) }",
        {"axes": np.array([-1])},
    )
    assert_declines(use_global_average_pool, model)


def test_declines_axes_that_are_computed() -> None:
    model = model_of(
        "g (float[N,3,4,5] x, int64[2] axes) => (float[a,b,c,d] y) { y = ReduceMean<keepdims=1>(x, axes) }"
    )
    assert_declines(use_global_average_pool, model)


def test_declines_a_mean_in_float64() -> None:
    model = model_of(
        "g (double[N,3,4,5] x) => (double[N,3,1,1] y) { y = ReduceMean<keepdims=1>(x, axes) }",
        {"axes": np.array([2, 3])},
    )
    assert_declines(use_global_average_pool, model)
