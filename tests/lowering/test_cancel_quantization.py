from __future__ import annotations

import numpy as np
import pytest

from fxcompress.lowering.cancel_quantization import cancel_quantization
from tests.lowering.graphs import assert_declines, assert_rewrites, floats, model_of

X = {"x": floats(2, 4)}
PAIR = {"s": np.float32(0.05), "z": np.uint8(128)}
TEXT = """
    g (float[N,4] x) => (float[N,4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        r = QuantizeLinear(d, s2, z2)
        y = DequantizeLinear(r, s2, z2)
    }"""


def test_equal_parameters_cancel() -> None:
    model = model_of(TEXT, {**PAIR, "s2": PAIR["s"], "z2": PAIR["z"]})
    assert_rewrites(
        cancel_quantization,
        model,
        "q = QuantizeLinear(x, s, z)\ny = DequantizeLinear(q, s2, z2)",
        X,
    )


@pytest.mark.parametrize(
    "other",
    [
        {"s2": np.float32(0.06), "z2": np.uint8(128)},
        {"s2": np.float32(0.05), "z2": np.uint8(127)},
        {"s2": np.float32(0.05), "z2": np.int8(0)},
    ],
    ids=["scale", "zero point", "type"],
)
def test_declines_a_requantization(other: dict[str, np.generic]) -> None:
    assert_declines(cancel_quantization, model_of(TEXT, {**PAIR, **other}))


def test_declines_parameters_that_are_computed() -> None:
    text = TEXT.replace("float[N,4] x)", "float[N,4] x, float s2)")
    assert_declines(cancel_quantization, model_of(text, {**PAIR, "z2": PAIR["z"]}))


def test_declines_when_something_lies_between() -> None:
    text = TEXT.replace("r = QuantizeLinear(d,", "a = Relu(d) r = QuantizeLinear(a,")
    assert_declines(cancel_quantization, model_of(text, {**PAIR, "s2": PAIR["s"], "z2": PAIR["z"]}))
