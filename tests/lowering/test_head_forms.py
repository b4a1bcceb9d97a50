"""Attention over heads as one operator of the runtime: the same numbers, for who asks for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.lowering.head_forms import MULTI_HEAD_ATTENTION, use_multi_head_attention
from fxcompress.lowering.lower import lower
from fxcompress.proof.parity import float_parity
from fxcompress.runtime.inspection import executed
from tests.lowering.doubles import assert_equal_in_double
from tests.lowering.graphs import apply, assert_declines, assert_rewrites, floats, model_of

TEXT = """
    g (float[N,5,12] a, float[N,7,12] b, float[N,7,12] c) => (float[N,5,12] y) {
        q1 = Reshape(a, heads)
        q2 = Transpose<perm=[0,2,1,3]>(q1)
        k1 = Reshape(b, more)
        k2 = Transpose<perm=[0,2,1,3]>(k1)
        k3 = Transpose<perm=[0,1,3,2]>(k2)
        v1 = Reshape(c, more)
        v2 = Transpose<perm=[0,2,1,3]>(v1)
        q = Mul(q2, root)
        k = Mul(root, k3)
        scores = MatMul(q, k)
        weights = Softmax<axis=-1>(scores)
        mixed = MatMul(weights, v2)
        turned = Transpose<perm=[0,2,1,3]>(mixed)
        y = Reshape(turned, flat)
    }"""
TENSORS = {
    "heads": np.array([-1, 5, 3, 4]),
    "more": np.array([-1, 7, 3, 4]),
    "flat": np.array([-1, 5, 12]),
    "root": np.float32(0.75),
}
AFTER = "y = MultiHeadAttention<num_heads=3, scale=0.5625>(a, b, c)"
FEEDS = {"a": floats(2, 5, 12), "b": floats(2, 7, 12, seed=1), "c": floats(2, 7, 12, seed=2)}


def test_the_parts_become_one_operator() -> None:
    assert_rewrites(use_multi_head_attention, model_of(TEXT, TENSORS), AFTER, FEEDS, exact=False)


def test_a_scale_that_is_off_by_a_millionth_is_seen() -> None:
    """The comparison of the tests above, on what single precision hardly tells from rounding."""
    _, after = apply(use_multi_head_attention, model_of(TEXT, TENSORS))
    other = model_of(TEXT, {**TENSORS, "root": np.float32(0.75 * (1 + 1e-6))})
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equal_in_double(other, after, FEEDS)


def test_a_key_turned_in_one_step_is_the_same() -> None:
    text = TEXT.replace("        k2 = Transpose<perm=[0,2,1,3]>(k1)\n", "")
    text = text.replace("Transpose<perm=[0,1,3,2]>(k2)", "Transpose<perm=[0,2,3,1]>(k1)")
    assert_rewrites(use_multi_head_attention, model_of(text, TENSORS), AFTER, FEEDS, exact=False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Softmax<axis=-1>(scores)", "Softmax<axis=2>(scores)"),
        ("Softmax<axis=-1>(scores)", "Softmax<axis=-1>(masked)"),
        ("MatMul(weights, v2)", "MatMul(weights, scaled)"),
        ("turned = Transpose<perm=[0,2,1,3]>(mixed)", "turned = Transpose<perm=[0,2,3,1]>(mixed)"),
        ("k1 = Reshape(b, more)", "k1 = Reshape(b, moved)"),
    ],
)
def test_declines_what_is_another_attention(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    if "masked" in new:
        text = text.replace("weights =", "masked = Add(scores, root)\n weights =")
    if "scaled" in new:
        text = text.replace("mixed =", "scaled = Mul(v2, root)\n mixed =")
    tensors = {**TENSORS, "moved": np.array([-1, 7, 4, 3])}
    if "moved" in new:
        text = text.replace("k2 = Transpose<perm=[0,2,1,3]>", "k2 = Transpose<perm=[0,3,1,2]>")
    assert_declines(use_multi_head_attention, model_of(text, tensors))


def test_declines_where_the_weights_are_read_elsewhere() -> None:
    text = TEXT.replace("(float[N,5,12] y)", "(float[N,5,12] y, float[N,3,5,7] weights)")
    assert_declines(use_multi_head_attention, model_of(text, TENSORS))


class Attention(nn.Module):
    """Self-attention of three heads, with a mask where one is given."""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (3, 4)).transpose(1, 2) for part in self.parts[:3])
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.parts[3](mixed.transpose(1, 2).flatten(2))


def test_a_program_is_lowered_to_the_form_only_where_it_is_asked_for() -> None:
    program = capture(Attention().eval(), torch.randn(2, 5, 12))
    plain, fused = lower(program), lower(program, forms=frozenset({MULTI_HEAD_ATTENTION}))
    assert {node.domain for node in plain.graph.node} == {""}
    assert [node.op_type for node in fused.graph.node if node.domain] == ["MultiHeadAttention"]
    assert "MultiHeadAttention" in [step.op_type for step in executed(fused)]
    float_parity(program, fused, (torch.randn(3, 5, 12),))


def test_a_masked_attention_stays_in_its_parts() -> None:
    program = capture(Attention(torch.rand(5, 5)).eval(), torch.randn(2, 5, 12))
    fused = lower(program, forms=frozenset({MULTI_HEAD_ATTENTION}))
    assert {node.domain for node in fused.graph.node} == {""}


def test_an_older_operator_set_has_no_forms_and_unknown_ones_are_refused() -> None:
    program = capture(Attention().eval(), torch.randn(2, 5, 12))
    old = lower(program, opset=17, forms=frozenset({MULTI_HEAD_ATTENTION}))
    assert {node.domain for node in old.graph.node} == {""}
    with pytest.raises(InputError, match="no lowering form"):
        lower(program, forms=frozenset({"attention"}))


def test_the_harness_sees_another_scale() -> None:
    changed, model = apply(use_multi_head_attention, model_of(TEXT, TENSORS))
    assert changed
    (node,) = model.graph.node
    (scale,) = [entry for entry in node.attribute if entry.name == "scale"]
    assert scale.f == pytest.approx(0.75**2)


class Windows(nn.Module):
    """Attention within windows of eight tokens, whose rows are put together again at once."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 8, 12)
        q, k, v = (part(windows).unflatten(-1, (3, 4)).transpose(1, 2) for part in self.parts)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 8, 12)
        return x + mixed.reshape(-1, 32, 12)


def test_tokens_that_are_regrouped_behind_keep_their_shape() -> None:
    result = fxcompress.optimize(Windows().eval(), torch.randn(2, 32, 12))
    x = torch.randn(3, 32, 12)
    (found,) = result.session().run(None, {result.program.signature.inputs[0]: x.numpy()})
    assert found.shape == (3, 32, 12)


def test_one_query_for_a_batch_of_keys_stays_in_its_parts() -> None:
    text = TEXT.replace("float[N,5,12] a", "float[1,5,12] a")
    assert_declines(use_multi_head_attention, model_of(text, TENSORS))
