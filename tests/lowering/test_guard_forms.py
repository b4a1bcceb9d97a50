"""The guard against rows that see nothing: gone where no row is one, else on the rows of the product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.lowering.guard_forms import lighten_guards
from fxcompress.lowering.lower import lower
from fxcompress.proof.parity import float_parity
from fxcompress.runtime.session import open_session, run
from tests.lowering.graphs import assert_declines, assert_rewrites, floats, model_of

LOWEST = float(np.finfo(np.float32).min)
CAUSAL = np.where(np.tri(5, dtype=bool), 0.0, LOWEST).astype(np.float32)
TEXT = """
    g (float[N,3,5,4] q, float[N,3,4,5] k, float[N,3,5,4] v, bool[N,1,5,5] mask) => (float[N,3,5,4] y) {
        scores = MatMul(q, k)
        m = Where(mask, zero, infinity)
        total = Add(scores, m)
        s = Softmax<axis=-1>(total)
        nan = IsNaN(s)
        safe = Where(nan, zero, s)
        y = MatMul(safe, v)
    }"""
STORED = TEXT.replace("        m = Where(mask, zero, infinity)\n", "").replace(", bool[N,1,5,5] mask", "")
TENSORS = {"zero": np.float32(0), "infinity": np.float32(-np.inf)}
FEEDS = {"q": floats(2, 3, 5, 4), "k": floats(2, 3, 4, 5, seed=2), "v": floats(2, 3, 5, 4, seed=1)}


def masks() -> NDArray[np.bool_]:
    """Two masks; the first hides everything from its second row."""
    made = np.random.default_rng(0).random((2, 1, 5, 5)) < 0.5
    made[..., 0] = True
    made[0, :, 1] = False
    return made


def test_rows_of_the_product_are_chosen() -> None:
    after = """
        scores = MatMul(q, k)
        m = Where(mask, zero, infinity)
        m/numbers = Cast<to=1>(mask)
        m/count = ReduceSum<keepdims=1>(m/numbers, m/axis)
        total = Add(scores, m)
        m/seen = Cast<to=9>(m/count)
        s = Softmax<axis=-1>(total)
        y/unguarded = MatMul(s, v)
        y = Where(m/seen, y/unguarded, zero)
    """
    feeds = {**FEEDS, "mask": masks()}
    rewritten = assert_rewrites(lighten_guards, model_of(TEXT, TENSORS), after, feeds)
    rows = run(open_session(rewritten), feeds)["y"]
    assert not rows[0, :, 1].any()
    assert rows[0, :, 2].all()


def test_a_stored_mask_under_which_every_row_sees_needs_no_guard() -> None:
    after = """
        scores = MatMul(q, k)
        total = Add(scores, m)
        s = Softmax<axis=-1>(total)
        y = MatMul(s, v)
    """
    assert_rewrites(lighten_guards, model_of(STORED, {**TENSORS, "m": CAUSAL}), after, FEEDS)


@pytest.mark.parametrize("hidden", [LOWEST, -np.inf])
def test_declines_a_stored_mask_that_hides_everything_from_a_row(hidden: float) -> None:
    mask = CAUSAL.copy()
    mask[2] = hidden
    assert_declines(lighten_guards, model_of(STORED, {**TENSORS, "m": mask}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("IsNaN(s)", "IsNaN(total)"),
        ("Softmax<axis=-1>", "Softmax<axis=2>"),
        ("MatMul(safe, v)", "MatMul(v, safe)"),
        ("Where(mask, zero, infinity)", "Where(mask, infinity, zero)"),
        ("Where(nan, zero, s)", "Where(nan, one, s)"),
    ],
)
def test_declines_what_is_no_guard_of_an_attention(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    if "v, safe" in new:
        text = text.replace("float[N,3,5,4]", "float[N,3,5,5]").replace("float[N,3,4,5]", "float[N,3,5,5]")
    assert_declines(lighten_guards, model_of(text, {**TENSORS, "one": np.float32(1)}))


def test_declines_weights_that_are_read_elsewhere() -> None:
    text = TEXT.replace("(float[N,3,5,4] y)", "(float[N,3,5,4] y, float[N,3,5,5] safe)")
    assert_declines(lighten_guards, model_of(text, TENSORS))


class Masked(nn.Module):
    """Attention under a mask of the caller, twice, so that both read one mask."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        first = F.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=mask)
        return first + F.scaled_dot_product_attention(first, x, x, attn_mask=mask)


def test_a_program_with_rows_that_see_nothing_is_lowered_faithfully() -> None:
    mask = torch.from_numpy(masks())
    program = capture(Masked().eval(), (torch.randn(2, 3, 5, 4), mask))
    model = lower(program)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("IsNaN") == 0
    assert kinds.count("ReduceSum") == 1
    assert kinds.count("Where") == 3
    float_parity(program, model, (torch.randn(2, 3, 5, 4), mask))


def test_a_causal_program_has_no_guard() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).tril())

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=self.mask)

    program = capture(Causal().eval(), torch.randn(2, 3, 5, 4))
    model = lower(program)
    assert not {"IsNaN", "Where"} & {node.op_type for node in model.graph.node}
    float_parity(program, model, (torch.randn(2, 3, 5, 4),))


@pytest.mark.parametrize("text", [TEXT, STORED], ids=["computed", "stored"])
def test_declines_where_the_scores_hide_something_by_themselves(text: str) -> None:
    """A mask in the scores beside the one that is added: rows that see nothing are those of both."""
    hidden = text.replace(
        "        total =", "        left = Where(padded, infinity, scores)\n        total ="
    )
    hidden = hidden.replace("Add(scores, m)", "Add(left, m)").replace(
        "float[N,3,5,4] v", "float[N,3,5,4] v, bool[N,1,1,5] padded"
    )
    tensors = {**TENSORS, **({"m": CAUSAL} if text is STORED else {})}
    assert_declines(lighten_guards, model_of(hidden, tensors))
