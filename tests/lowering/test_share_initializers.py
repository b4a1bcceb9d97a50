from __future__ import annotations

import numpy as np

from fxcompress.lowering.share_initializers import share_initializers
from tests.lowering.graphs import assert_declines, assert_rewrites, floats, model_of

TEXT = "g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Add(x, a) z = Add(x, b) }"


def test_equal_tensors_are_stored_once() -> None:
    model = model_of(TEXT, {"a": floats(3), "b": floats(3)})
    after = assert_rewrites(share_initializers, model, "y = Add(x, a)\nz = Add(x, a)", {"x": floats(2, 3)})
    assert [tensor.name for tensor in after.graph.initializer] == ["a"]


def test_declines_other_values_and_other_shapes() -> None:
    assert_declines(share_initializers, model_of(TEXT, {"a": floats(3), "b": floats(3, seed=1)}))
    same = floats(1)
    assert_declines(share_initializers, model_of(TEXT, {"a": same, "b": same.reshape(1, 1)}))


def test_declines_equal_bytes_of_another_type() -> None:
    text = "g (float[2,3] x) => (float[2,3] y, int32[3] z) { y = Add(x, a) z = Neg(b) }"
    assert_declines(
        share_initializers, model_of(text, {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.int32)})
    )


def test_declines_negative_zero() -> None:
    model = model_of(TEXT, {"a": np.array([0.0], np.float32), "b": np.array([-0.0], np.float32)})
    assert_declines(share_initializers, model)
