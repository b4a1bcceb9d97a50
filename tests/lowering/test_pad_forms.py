"""Padded integers: the convolution pads, with the integer that means zero."""

from __future__ import annotations

import numpy as np
import pytest

from fxcompress.lowering.pad_forms import pad_in_convolutions
from fxcompress.runtime.inspection import executed
from tests.lowering.graphs import apply, assert_declines, assert_rewrites, floats, model_of, small_ints

TEXT = """
    g (float[N,3,6,6] x) => (float[N,4,M,O] y) {
        q = QuantizeLinear(x, s, zero)
        padded = Pad(q, amounts, zero)
        real = DequantizeLinear(padded, s, zero)
        weight = DequantizeLinear<axis=0>(w, ws, wz)
        z = Conv<strides=[2,2], pads=[0,1,0,0]>(real, weight)
        qz = QuantizeLinear(z, s, zero)
        y = DequantizeLinear(qz, s, zero)
    }"""
TENSORS = {
    "s": np.float32(0.03),
    "zero": np.uint8(7),
    "other": np.uint8(0),
    "amounts": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
    "channels": np.array([0, 1, 0, 0, 0, 0, 1, 1]),
    "cut": np.array([0, 0, -1, 0, 0, 0, 1, 1]),
    "w": small_ints(4, 3, 3, 3),
    "ws": np.full(4, 0.01, np.float32),
    "wz": np.zeros(4, np.int8),
}
AFTER = """
    q = QuantizeLinear(x, s, zero)
    weight = DequantizeLinear<axis=0>(w, ws, wz)
    real = DequantizeLinear(q, s, zero)
    z = Conv<pads=[0, 1, 1, 1], strides=[2, 2]>(real, weight)
    qz = QuantizeLinear(z, s, zero)
    y = DequantizeLinear(qz, s, zero)
"""


def test_the_convolution_pads_by_itself() -> None:
    rewritten = assert_rewrites(
        pad_in_convolutions, model_of(TEXT, TENSORS), AFTER, {"x": floats(2, 3, 6, 6)}
    )
    assert "Pad" not in [step.op_type for step in executed(rewritten)]
    assert "QLinearConv" in [step.op_type for step in executed(rewritten)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Pad(q, amounts, zero)", "Pad(q, amounts, other)"),
        ("Pad(q, amounts, zero)", 'Pad<mode="edge">(q, amounts)'),
        ("Pad(q, amounts, zero)", "Pad(q, cut, zero)"),
        ("z = Conv<strides=[2,2], pads=[0,1,0,0]>(real, weight)", "z = MaxPool<kernel_shape=[3,3]>(real)"),
        ("strides=[2,2], pads=[0,1,0,0]", 'strides=[2,2], auto_pad="SAME_UPPER"'),
    ],
)
def test_declines(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    if "MaxPool" in new:
        text = text.replace("float[N,4,M,O] y", "float[N,3,M,O] y")
    assert_declines(pad_in_convolutions, model_of(text, TENSORS))


def test_declines_padded_channels_and_other_readers() -> None:
    text = TEXT.replace("Pad(q, amounts", "Pad(q, channels")
    assert_declines(pad_in_convolutions, model_of(text, {**TENSORS, "w": small_ints(4, 4, 3, 3)}))
    text = TEXT.replace("(float[N,4,M,O] y)", "(float[N,4,M,O] y, float[N,3,7,7] real)")
    assert_declines(pad_in_convolutions, model_of(text, TENSORS))


def test_two_convolutions_of_one_padded_tensor() -> None:
    text = TEXT.replace("(float[N,4,M,O] y)", "(float[N,4,M,O] y, float[N,4,P,R] second)")
    text = text.replace("        qz =", "        second = Conv(real, weight)\n        qz =")
    changed, after = apply(pad_in_convolutions, model_of(text, TENSORS))
    assert changed == 1
    assert [node.op_type for node in after.graph.node].count("Pad") == 0
