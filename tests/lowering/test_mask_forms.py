from __future__ import annotations

import numpy as np
import onnx
import pytest

from fxcompress.lowering.mask_forms import mask_with_infinity
from fxcompress.runtime.session import open_session, run
from tests.lowering.graphs import apply, assert_declines, assert_rewrites, floats, listing, model_of

TEXT = """
    g (float[N,4] scores, bool[N,4] allowed) => (float[N,4] scaled_dot_product_y) {
        m = Where(allowed, zero, lowest)
        sum = Add(scores, m)
        s = Softmax<axis=-1>(sum)
        bad = IsNaN(s)
        scaled_dot_product_y = Where(bad, zero, s)
    }"""
TENSORS = {"zero": np.float32(0), "lowest": np.finfo(np.float32).min}
AFTER = """
    m = Where(allowed, zero, m/infinity)
    sum = Add(scores, m)
    s = Softmax<axis=-1>(sum)
    bad = IsNaN(s)
    scaled_dot_product_y = Where(bad, zero, s)"""
SOME = np.array([[True, False, True, True], [True, True, True, True]])


def test_rows_that_see_something_stay_as_they_are() -> None:
    feeds = {"scores": floats(2, 4), "allowed": SOME}
    after = assert_rewrites(mask_with_infinity, model_of(TEXT, TENSORS), AFTER, feeds)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert np.isneginf(stored["m/infinity"])


def test_rows_that_see_nothing_become_zeros() -> None:
    feeds = {"scores": floats(2, 4), "allowed": SOME & [[True], [False]]}
    model = model_of(TEXT, TENSORS)
    _, after = apply(mask_with_infinity, model)
    for optimize in (False, True):
        before = run(open_session(model, optimize=optimize), feeds)["scaled_dot_product_y"]
        result = run(open_session(after, optimize=optimize), feeds)["scaled_dot_product_y"]
        np.testing.assert_allclose(before[1], 0.25, rtol=1e-6)
        np.testing.assert_array_equal(result[1], 0.0)
        np.testing.assert_array_equal(result[0], before[0])


def test_a_constant_with_other_readers_is_not_changed_for_them() -> None:
    text = TEXT.replace(
        "(float[N,4] scaled_dot_product_y)", "(float[N,4] scaled_dot_product_y, float[N,4] clipped)"
    ).replace("scaled_dot_product_y = Where", "clipped = Max(scores, lowest) scaled_dot_product_y = Where")
    _, after = apply(mask_with_infinity, model_of(text, TENSORS))
    assert "clipped = Max(scores, lowest)" in listing(after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scaled_dot_product_y = Where(bad, zero, s)", "scaled_dot_product_y = Where(bad, lowest, s)"),
        ("bad = IsNaN(s)", "bad = IsNaN(sum)"),
        ("sum = Add(scores, m)", "sum = Mul(scores, m)"),
        ("Where(allowed, zero, lowest)", "Where(allowed, lowest, zero)"),
    ],
    ids=["no zeros", "another test", "no sum", "mask turned round"],
)
def test_declines_what_is_no_guarded_mask(old: str, new: str) -> None:
    assert_declines(mask_with_infinity, model_of(TEXT.replace(old, new), TENSORS))


def test_declines_another_number() -> None:
    assert_declines(mask_with_infinity, model_of(TEXT, {**TENSORS, "lowest": np.float32(-1e4)}))


def test_a_mask_that_an_unguarded_attention_reads_too_stays() -> None:
    """Minus infinity would turn its rows that see nothing into NaN, where torch averages."""
    text = TEXT.replace(
        "(float[N,4] scaled_dot_product_y)", "(float[N,4] scaled_dot_product_y, float[N,4] plain)"
    )
    text = text.replace(
        "scaled_dot_product_y = Where",
        "other = Add(scores, m) plain = Softmax<axis=-1>(other) scaled_dot_product_y = Where",
    )
    assert_declines(mask_with_infinity, model_of(text, TENSORS))


def test_declines_a_guard_that_the_model_wrote_itself() -> None:
    """There a row that sees nothing is the mean of all values, in torch too."""
    text = TEXT.replace("scaled_dot_product_y", "where_y")
    assert_declines(mask_with_infinity, model_of(text, TENSORS))
