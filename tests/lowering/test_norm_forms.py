from __future__ import annotations

import numpy as np
import pytest

from fxcompress.lowering.norm_forms import divide_by_root
from fxcompress.runtime.inspection import executed
from tests.lowering.graphs import apply, assert_declines, assert_rewrites, floats, model_of

TEXT = """
    g (float[N,5,8] x) => (float[N,5,8] y) {
        square = Pow(x, two)
        mean = ReduceMean<keepdims=1>(square, axes)
        sum = Add(mean, eps)
        root = Sqrt(sum)
        inverse = Reciprocal(root)
        normal = Mul(x, inverse)
        y = Mul(weight, normal)
    }"""
TENSORS = {
    "two": np.float32(2),
    "axes": np.array([-1]),
    "eps": np.float32(1e-6),
    "weight": floats(8),
}
AFTER = """
    square = Pow(x, two)
    mean = ReduceMean<keepdims=1>(square, axes)
    sum = Add(mean, eps)
    root = Sqrt(sum)
    normal = Div(x, root)
    y = Mul(weight, normal)"""


@pytest.mark.parametrize("product", ["Mul(x, inverse)", "Mul(inverse, x)"])
def test_a_reciprocal_root_becomes_a_division(product: str) -> None:
    model = model_of(TEXT.replace("Mul(x, inverse)", product), TENSORS)
    assert_rewrites(divide_by_root, model, AFTER, {"x": floats(2, 5, 8)}, exact=False)


def test_the_runtime_fuses_the_norm_only_in_this_form() -> None:
    model = model_of(TEXT, TENSORS)
    _, after = apply(divide_by_root, model)
    assert [step.op_type for step in executed(after)] == ["SimplifiedLayerNormalization"]
    assert len(executed(model)) > 1


def test_declines_a_shared_reciprocal_and_other_reciprocals() -> None:
    assert_declines(
        divide_by_root, model_of(TEXT.replace("Mul(weight, normal)", "Mul(inverse, normal)"), TENSORS)
    )
    text = TEXT.replace("root = Sqrt(sum)", "root = Abs(sum)")
    assert_declines(divide_by_root, model_of(text, TENSORS))
