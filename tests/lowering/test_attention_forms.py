from __future__ import annotations

import numpy as np
import pytest

from fxcompress.lowering.attention_forms import transpose_keys_directly
from tests.lowering.graphs import assert_declines, assert_rewrites, floats, model_of

K = {"k": floats(2, 3, 5, 4)}
NUMBERS = {
    "m2": np.array([-2]),
    "m1": np.array([-1]),
    "first": np.array([np.iinfo(np.int64).min]),
    "last": np.array([np.iinfo(np.int64).max]),
}
DYNAMIC = """
    g (float[N,3,S,4] k) => (float[N,3,4,S] y) {
        shape = Shape(k)
        rows = Slice(shape, m2, m1)
        columns = Slice(shape, m1, last)
        lead = Slice(shape, first, m2)
        flat = Concat<axis=0>(m1, rows, columns)
        back = Concat<axis=0>(lead, columns, rows)
        a = Reshape(k, flat)
        b = Transpose<perm=[0,2,1]>(a)
        y = Reshape(b, back)
    }"""
STATIC = """
    g (float[N,3,5,4] k) => (float[N,3,4,5] y) {
        a = Reshape(k, flat)
        b = Transpose<perm=[0,2,1]>(a)
        y = Reshape(b, back)
    }"""


def test_the_exporters_detour_is_one_transpose() -> None:
    model = model_of(DYNAMIC, NUMBERS)
    assert_rewrites(transpose_keys_directly, model, "y = Transpose<perm=[0, 1, 3, 2]>(k)", K)


@pytest.mark.parametrize("back", [[-1, 3, 4, 5], [2, 3, 4, 5]])
def test_stored_shapes(back: list[int]) -> None:
    model = model_of(STATIC, {"flat": np.array([-1, 5, 4]), "back": np.array(back)})
    assert_rewrites(transpose_keys_directly, model, "y = Transpose<perm=[0, 1, 3, 2]>(k)", K)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Concat<axis=0>(lead, columns, rows)", "Concat<axis=0>(lead, rows, columns)"),
        ("Concat<axis=0>(m1, rows, columns)", "Concat<axis=0>(m1, columns, rows)"),
        ("rows = Slice(shape, m2, m1)", "rows = Slice(shape, m1, last)"),
    ],
)
def test_declines_another_reshape(old: str, new: str) -> None:
    text = DYNAMIC.replace(old, new).replace("(float[N,3,4,S] y)", "(float[a,b,c,d] y)")
    assert_declines(transpose_keys_directly, model_of(text, NUMBERS))


def test_declines_the_shape_of_another_tensor() -> None:
    text = DYNAMIC.replace("float[N,3,S,4] k)", "float[N,3,S,4] k, float[N,3,S,4] other)").replace(
        "Shape(k)", "Shape(other)"
    )
    assert_declines(transpose_keys_directly, model_of(text, NUMBERS))


def test_declines_stored_shapes_that_split_other_dimensions() -> None:
    model = model_of(
        STATIC.replace("[N,3,4,5] y", "[a,b,c,d] y"),
        {"flat": np.array([-1, 5, 4]), "back": np.array([-1, 1, 4, 5])},
    )
    assert_declines(transpose_keys_directly, model)


def test_declines_when_a_middle_value_is_read_elsewhere() -> None:
    text = DYNAMIC.replace("(float[N,3,4,S] y)", "(float[N,3,4,S] y, float[a,b,c] b)")
    assert_declines(transpose_keys_directly, model_of(text, NUMBERS))
