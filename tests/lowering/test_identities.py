from __future__ import annotations

import numpy as np
import pytest

from fxcompress.lowering.identities import remove_identities
from tests.lowering.graphs import assert_declines, assert_rewrites, floats, model_of

X = {"x": floats(2, 3)}


@pytest.mark.parametrize(
    "identity",
    ["Identity(a)", "Cast<to=1>(a)", "Transpose<perm=[0,1]>(a)", "Reshape(a, shape)", "Dropout(a)"],
)
def test_a_node_that_returns_its_input_goes(identity: str) -> None:
    model = model_of(
        f"g (float[2,3] x) => (float[2,3] y) {{ a = Relu(x) b = {identity} y = Neg(b) }}",
        {"shape": np.array([2, 3])} if "shape" in identity else {},
    )
    assert_rewrites(remove_identities, model, "a = Relu(x)\ny = Neg(a)", X)


def test_the_maker_takes_over_an_output_name() -> None:
    model = model_of(
        "g (float[2,3] x) => (float[2,3] y, float[2,3] z) { a = Relu(x) y = Identity(a) z = Neg(a) }"
    )
    assert_rewrites(remove_identities, model, "y = Relu(x)\nz = Neg(y)", X)


def test_a_chain_of_identities_goes() -> None:
    model = model_of(
        "g (float[2,3] x) => (float[2,3] y) { a = Relu(x) b = Identity(a) c = Identity(b) y = Neg(c) }"
    )
    assert_rewrites(remove_identities, model, "a = Relu(x)\ny = Neg(a)", X)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }",
        "g (float[2,3] x) => (float[2,3] a, float[2,3] y) { a = Relu(x) y = Identity(a) }",
        "g (float[2,3] x) => (double[2,3] y) { y = Cast<to=11>(x) }",
        "g (float[3,3] x) => (float[3,3] y) { a = Transpose<perm=[1,0]>(x) y = Neg(a) }",
    ],
    ids=["input to output", "two outputs", "cast", "transpose"],
)
def test_declines(text: str) -> None:
    assert_declines(remove_identities, model_of(text))


def test_declines_a_reshape_to_another_or_unknown_shape() -> None:
    text = "g (float[N,3] x) => (float[a,b] y) { b = Reshape(x, shape) y = Neg(b) }"
    assert_declines(remove_identities, model_of(text, {"shape": np.array([-1, 3])}))
    assert_declines(remove_identities, model_of(text, {"shape": np.array([3, 2])}))
