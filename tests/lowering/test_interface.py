from __future__ import annotations

import numpy as np
import pytest
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError
from fxcompress.graph.signature import Signature
from fxcompress.lowering.interface import check_names, name_dimensions, name_interface
from fxcompress.runtime.session import open_session, run
from tests.lowering.graphs import floats, listing, model_of

LEAVES = pytree.tree_structure((0, 0))
SIGNATURE = Signature(("x", "mask"), ("logits",), {}, LEAVES, LEAVES)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["a"], None, "input_names"),
        (["a", "b", "c"], None, "input_names"),
        (["a", "a"], None, "repeats"),
        (["a", ""], None, "input_names"),
        (["a", 1], None, "input_names"),
        ("ab", None, "input_names"),
        (None, [], "output_names"),
        (None, ["x"], "both"),
        (["logits", "mask"], None, "both"),
    ],
)
def test_names_that_do_not_fit_are_refused(inputs: list[str], outputs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_names(SIGNATURE, inputs, outputs)


def test_names_that_fit_are_accepted() -> None:
    check_names(SIGNATURE, None, None)
    check_names(SIGNATURE, ["a", "b"], ("c",))


def test_renaming_keeps_the_function_and_moves_what_is_in_the_way() -> None:
    model = model_of(
        "g (float[N,3] x) => (float[N,3] y) { image = Add(x, score) z = Relu(image) y = Mul(z, x) }",
        {"score": floats(3)},
    )
    name_interface(model, ["image"], ["score"])
    assert listing(model) == "image_1 = Add(image, score_1)\nz = Relu(image_1)\nscore = Mul(z, image)"
    x = floats(2, 3)
    expected = np.maximum(x + floats(3), 0) * x
    np.testing.assert_allclose(run(open_session(model), {"image": x})["score"], expected, rtol=1e-6)


def test_swapped_names_are_swapped() -> None:
    model = model_of("g (float[2] a, float[2] b) => (float[2] y) { y = Sub(a, b) }")
    name_interface(model, ["b", "a"], ["y"])
    assert listing(model) == "y = Sub(b, a)"


def test_an_output_that_is_read_inside_keeps_its_readers() -> None:
    model = model_of("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(y) }")
    name_interface(model, ["x"], ["first", "second"])
    assert listing(model) == "first = Relu(x)\nsecond = Neg(first)"


def test_dimensions_get_the_names_of_the_signature() -> None:
    model = model_of("g (float[s77,3] x) => (float[s77,3] y) { y = Relu(x) }")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "2*s77 + s7"
    name_dimensions(model, {"s77": "batch", "s7": "time"})
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "2*batch + time"
