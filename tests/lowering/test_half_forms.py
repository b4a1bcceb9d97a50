"""Products of half floats in a form that the runtime survives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.lowering.half_forms import part_from_transposes
from fxcompress.lowering.lower import lower
from fxcompress.passes.change_floats import ChangeFloats
from fxcompress.proof.halves import half_bound
from fxcompress.runtime.session import open_session, run
from tests.lowering.graphs import Arrays, apply, assert_declines, assert_rewrites, floats, model_of

TEXT = """
    g (float16[A,B,16] x) => (float16[B,A,4] y) {
        turned = Transpose<perm=[1,0,2]>(x)
        y = MatMul(turned, w)
    }"""
WEIGHT: Arrays = {"w": floats(16, 4).astype(np.float16)}
X = floats(5, 6, 16).astype(np.float16)


def test_a_leading_axis_keeps_the_transpose_out_of_the_product() -> None:
    after = """
        turned = Transpose<perm=[1, 0, 2]>(x)
        y/Unsqueeze = Unsqueeze(turned, y/axes)
        y/MatMul = MatMul(y/Unsqueeze, w)
        y = Squeeze(y/MatMul, y/axes)"""
    rewritten = assert_rewrites(part_from_transposes, model_of(TEXT, WEIGHT), after, {"x": X})
    found = run(open_session(rewritten), {"x": X})["y"]  # the form before ends the process here
    np.testing.assert_allclose(found, X.transpose(1, 0, 2) @ WEIGHT["w"], rtol=0.02, atol=0.02)


def test_a_scaled_transpose_and_a_vector_are_parted_too() -> None:
    text = """
        g (float16[A,B,16] x) => (float16[B,A] y) {
            turned = Transpose<perm=[1,0,2]>(x)
            scaled = Mul(turned, half)
            y = MatMul(scaled, w)
        }"""
    stored = {"w": WEIGHT["w"][:, 0].copy(), "half": np.asarray(0.5, np.float16)}
    changed, after = apply(part_from_transposes, model_of(text, stored))
    assert changed == 1
    found = run(open_session(after), {"x": X})["y"]
    np.testing.assert_allclose(found, X.transpose(1, 0, 2) / 2 @ stored["w"], rtol=0.02, atol=0.02)


def test_a_factor_on_the_right_is_parted_too() -> None:
    text = """
        g (float16[16,B,C] x) => (float16[B,4,C] y) {
            turned = Transpose<perm=[1,0,2]>(x)
            y = MatMul(w, turned)
        }"""
    weight = WEIGHT["w"].T.copy()
    changed, after = apply(part_from_transposes, model_of(text, {"w": weight}))
    assert changed == 1
    x = floats(16, 6, 5).astype(np.float16)
    found = run(open_session(after), {"x": x})["y"]
    np.testing.assert_allclose(found, weight @ x.transpose(1, 0, 2), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("float16", "float"),
        TEXT.replace("A,B,16", "B,16,A").replace("1,0,2", "0,2,1"),  # the leading axis stays
        TEXT.replace("perm=[1,0,2]>(x)", "perm=[1,0,2]>(x)\n half = Relu(turned)").replace(
            "MatMul(turned", "MatMul(half"
        ),
    ],
)
def test_what_the_runtime_takes_stays(text: str) -> None:
    values = WEIGHT["w"] if "float16" in text else WEIGHT["w"].astype(np.float32)
    assert_declines(part_from_transposes, model_of(text, {"w": values}))


def test_a_product_of_two_batches_stays() -> None:
    batches = {"w": floats(6, 16, 4).astype(np.float16)}
    assert_declines(part_from_transposes, model_of(TEXT.replace("[B,A,4]", "[6,A,4]"), batches))


class Sequence(nn.Module):
    """A recurrent layer with the batch in front, and a linear on its outputs."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(16, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x)[0])
        return out


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_computed_in_float16(kind: type[nn.RNNBase]) -> None:
    """Once the runtime ended the process when it opened the file."""
    program = capture(Sequence(kind).eval(), torch.randn(2, 6, 16))
    short = ChangeFloats("float16", "all").run(program).program
    found = half_bound(program, short, lower(short), program.flat_example(), torch.float16)
    assert found.error <= found.bound
