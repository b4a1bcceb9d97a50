from __future__ import annotations

import numpy as np

from fxcompress.lowering.fold_weight_transposes import fold_weight_transposes
from tests.lowering.graphs import assert_declines, assert_rewrites, floats, model_of, small_ints

X = {"x": floats(2, 5, 4)}
QUANTIZED = """
    g (float[N,5,4] x) => (float[N,5,3] y) {
        d = DequantizeLinear<axis=0>(W, s, z)
        t = Transpose<perm=[1,0]>(d)
        y = MatMul(x, t)
    }"""
SCALES = {"s": np.array([0.1, 0.2, 0.3], np.float32), "z": np.zeros(3, np.int8)}


def test_float_weight_is_stored_transposed_under_its_name() -> None:
    model = model_of(
        "g (float[N,5,4] x) => (float[N,5,3] y) { t = Transpose<perm=[1,0]>(W) y = MatMul(x, t) }",
        {"W": floats(3, 4)},
    )
    after = assert_rewrites(fold_weight_transposes, model, "y = MatMul(x, W)", X)
    assert list(after.graph.initializer[0].dims) == [4, 3]


def test_quantized_weight_is_stored_transposed_and_its_axis_follows() -> None:
    model = model_of(QUANTIZED, {"W": small_ints(3, 4), **SCALES})
    after = assert_rewrites(
        fold_weight_transposes, model, "d = DequantizeLinear<axis=1>(W, s, z)\ny = MatMul(x, d)", X
    )
    stored = {tensor.name: tensor for tensor in after.graph.initializer}
    assert stored["W"].data_type == 3  # still int8
    assert list(stored["W"].dims) == [4, 3]


def test_negative_axis_and_three_dimensions() -> None:
    model = model_of(
        """
        g (float[2,4,3] x) => (float[2,4,4] y) {
            d = DequantizeLinear<axis=-1>(W, s, z)
            t = Transpose<perm=[0,2,1]>(d)
            y = MatMul(x, t)
        }""",
        {"W": small_ints(2, 4, 3), **SCALES},
    )
    assert_rewrites(
        fold_weight_transposes,
        model,
        "d = DequantizeLinear<axis=1>(W, s, z)\ny = MatMul(x, d)",
        {"x": floats(2, 4, 3)},
    )


def test_per_tensor_scale_has_no_axis_to_follow() -> None:
    model = model_of(
        QUANTIZED.replace("<axis=0>", ""),
        {"W": small_ints(3, 4), "s": np.float32(0.1), "z": np.int8(0)},
    )
    assert_rewrites(fold_weight_transposes, model, "d = DequantizeLinear(W, s, z)\ny = MatMul(x, d)", X)


def test_two_equal_transposes_of_one_weight_are_both_folded() -> None:
    model = model_of(
        """
        g (float[N,5,4] x) => (float[N,5,3] y, float[N,5,3] w) {
            t = Transpose<perm=[1,0]>(W)
            u = Transpose<perm=[1,0]>(W)
            y = MatMul(x, t)
            w = MatMul(x, u)
        }""",
        {"W": floats(3, 4)},
    )
    assert_rewrites(fold_weight_transposes, model, "y = MatMul(x, W)\nw = MatMul(x, W)", X)


def test_declines_a_tied_embedding() -> None:
    model = model_of(
        """
        g (float[N,5,4] x, int64[N] i) => (float[N,5,3] y, float[N,4] e) {
            t = Transpose<perm=[1,0]>(W)
            y = MatMul(x, t)
            e = Gather(W, i)
        }""",
        {"W": floats(3, 4)},
    )
    assert_declines(fold_weight_transposes, model)


def test_declines_a_quantized_weight_that_is_also_read_untransposed() -> None:
    model = model_of(
        QUANTIZED.replace("(float[N,5,3] y)", "(float[N,5,3] y, float[3,4] d)"),
        {"W": small_ints(3, 4), **SCALES},
    )
    assert_declines(fold_weight_transposes, model)


def test_declines_different_permutations_and_computed_tensors() -> None:
    model = model_of(
        """
        g (float[2,2,2] x) => (float[2,2,2] a, float[2,2,2] b, float[2,2,2] c) {
            t = Transpose<perm=[0,2,1]>(W)
            u = Transpose<perm=[1,0,2]>(W)
            v = Transpose<perm=[1,0,2]>(x)
            a = Add(x, t)
            b = Add(x, u)
            c = Add(x, v)
        }""",
        {"W": floats(2, 2, 2)},
    )
    assert_declines(fold_weight_transposes, model)
