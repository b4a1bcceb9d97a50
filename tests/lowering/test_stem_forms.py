"""A strided integer convolution of an image computes the same integers over blocks of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fxcompress.lowering.stem_forms import use_space_to_depth
from fxcompress.runtime.session import open_session, run
from tests.lowering.graphs import apply, assert_declines, assert_rewrites, floats, model_of

TEXT = """
    g (float[N,{channels},{height},{width}] x) => (float[N,5,OH,OW] y) {{
        q = QuantizeLinear(x, s, z)
        r = DequantizeLinear(q, s, z)
        w = DequantizeLinear<axis=0>(stored, scales)
        c = Conv<strides=[{stride}, {stride}], pads=[{pads}]{more}>(r, w)
        p = QuantizeLinear(c, t, z)
        y = DequantizeLinear(p, t, z)
    }}"""


def whole(*shape: int) -> NDArray[np.int8]:
    return np.random.default_rng(0).integers(-127, 128, shape, dtype=np.int8)


def stored(channels: int, kernel: tuple[int, int]) -> dict[str, NDArray[Any] | np.generic]:
    """The tensors of the text: scales, zero points and the weight."""
    return {
        "s": np.float32(0.02),
        "z": np.uint8(117),
        "t": np.float32(0.3),
        "stored": whole(5, channels, *kernel),
        "scales": np.linspace(0.01, 0.02, 5, dtype=np.float32),
    }


def stem(
    kernel: tuple[int, int],
    stride: int,
    pads: tuple[int, int, int, int],
    size: tuple[int, int] = (12, 24),
    channels: int = 3,
    more: str = "",
) -> onnx.ModelProto:
    text = TEXT.format(
        channels=channels,
        height=size[0],
        width=size[1],
        stride=stride,
        pads=", ".join(map(str, pads)),
        more=more,
    )
    return model_of(text, stored(channels, kernel))


AFTER = """
    q = QuantizeLinear(x, s, z)
    w = DequantizeLinear<axis=0>(stored, scales)
    c/SpaceToDepth = SpaceToDepth<blocksize=2>(q)
    c/SpaceToDepth/DequantizeLinear = DequantizeLinear(c/SpaceToDepth, s, z)
    c = Conv<kernel_shape=[2, 2], pads=[1, 1, 0, 0], strides=[1, 1]>(c/SpaceToDepth/DequantizeLinear, w)
    p = QuantizeLinear(c, t, z)
    y = DequantizeLinear(p, t, z)"""


def test_the_convolution_reads_blocks() -> None:
    assert_rewrites(use_space_to_depth, stem((3, 3), 2, (1, 1, 1, 1)), AFTER, {"x": floats(2, 3, 12, 24)})


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        ((7, 7), 2, (3, 3, 3, 3)),
        ((4, 4), 4, (0, 0, 0, 0)),
        ((3, 3), 2, (0, 0, 1, 1)),
        ((2, 5), 3, (1, 1, 0, 3)),
        ((5, 3), 2, (3, 1, 2, 1)),
        ((1, 1), 2, (0, 0, 0, 0)),
    ],
)
def test_the_same_integers(
    kernel: tuple[int, int], stride: int, pads: tuple[int, int, int, int], optimize: bool
) -> None:
    model = stem(kernel, stride, pads)
    changed, after = apply(use_space_to_depth, model)
    assert changed == 1
    feeds = {"x": floats(2, 3, 12, 24)}
    before = run(open_session(model, optimize=False), feeds)["y"]
    result = run(open_session(after, optimize=optimize), feeds)["y"]
    assert result.shape == before.shape
    steps = np.abs(result - before) / 0.3
    assert steps.max() <= 1.01  # sums of floats may land on the other side of a half
    assert (steps > 0.01).mean() <= 0.01
    assert len(np.unique(before)) > 20


@pytest.mark.parametrize(
    "model",
    [
        stem((3, 3), 1, (1, 1, 1, 1)),
        stem((3, 3), 8, (1, 1, 1, 1), (16, 24)),
        stem((3, 3), 2, (1, 1, 1, 1), (13, 24)),
        stem((3, 3), 2, (1, 1, 1, 1), channels=5),
        stem((3, 3), 2, (0, 1, 1, 1)),
        stem((3, 3), 2, (1, 1, 1, 1), more=", dilations=[2, 2]"),
    ],
    ids=["stride 1", "stride 8", "odd", "wide", "uneven", "dilated"],
)
def test_other_convolutions_stay(model: onnx.ModelProto) -> None:
    assert_declines(use_space_to_depth, model)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_weight_with_zero_points_stays(zero: int) -> None:
    """The taps that blocks add are integers of zero, and those stand for other numbers there."""
    text = TEXT.format(channels=3, height=12, width=24, stride=2, pads="1, 1, 1, 1", more="")
    tensors = {**stored(3, (3, 3)), "points": np.full(5, zero, np.int8)}
    model = model_of(text.replace("(stored, scales)", "(stored, scales, points)"), tensors)
    if zero:
        assert_declines(use_space_to_depth, model)
    else:
        assert apply(use_space_to_depth, model)[0] == 1


def test_a_weight_with_another_reader_stays() -> None:
    text = TEXT.format(channels=3, height=12, width=24, stride=2, pads="1, 1, 1, 1", more="")
    text = text.replace(" y) {", " y, float[5,3,3,3] e) {").replace("p = Quant", "e = Mul(w, w) p = Quant")
    tensors = stored(3, (3, 3))
    assert_declines(use_space_to_depth, model_of(text, tensors))
