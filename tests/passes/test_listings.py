"""Rules as they read: the operators of a small program before and after each, as text."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.contract import Pass
from fxcompress.passes.convolve_norms import ConvolveNorms
from fxcompress.passes.drop_masks import DropMasks
from fxcompress.passes.gather_shuffles import GatherShuffles
from fxcompress.passes.merge_branches import MergeBranches
from fxcompress.passes.merge_linears import MergeLinears
from fxcompress.passes.pool_globally import PoolGlobally
from fxcompress.passes.recognize_activations import RecognizeActivations
from fxcompress.passes.remove_duplicates import RemoveDuplicates
from tests.passes.models import Apply, Chain

IMAGE = (2, 4, 6, 6)


def conv(kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, **options)


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    y = m.c(x)
    return m.d(y.view(y.shape[0], 2, 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2))


def open_attention(_: nn.Module, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(6, 6, dtype=torch.bool))


CASES: tuple[tuple[Pass, nn.Module, tuple[int, ...], str, str], ...] = (
    (
        MergeBranches(),
        Apply(lambda m, x: m.a(x) + m.b(x), a=conv(3, padding=1), b=conv()),
        IMAGE,
        """
        conv2d: f32[batch, 4, 6, 6] = conv2d(x, a_weight, a_bias, [1, 1], [1, 1])  # a
        conv2d_1: f32[batch, 4, 6, 6] = conv2d(x, b_weight, b_bias)  # b
        add: f32[batch, 4, 6, 6] = add.Tensor(conv2d, conv2d_1)""",
        """
        conv2d: f32[batch, 4, 6, 6] = conv2d(x, a_weight, a_bias, [1, 1], [1, 1])  # a""",
    ),
    (
        MergeLinears(),
        Chain(a=nn.Linear(4, 8), b=nn.Linear(8, 2)),
        (2, 4),
        """
        linear: f32[batch, 8] = linear(x, a_weight, a_bias)  # a
        linear_1: f32[batch, 2] = linear(linear, b_weight, b_bias)  # b""",
        """
        linear_1: f32[batch, 2] = linear(x, b_weight, b_bias)  # b""",
    ),
    (
        RemoveDuplicates(),
        Apply(lambda _, x: torch.relu(x + 1) * torch.relu(x + 1)),
        IMAGE,
        """
        add: f32[batch, 4, 6, 6] = add.Tensor(x, 1)
        relu: f32[batch, 4, 6, 6] = relu(add)
        add_1: f32[batch, 4, 6, 6] = add.Tensor(x, 1)
        relu_1: f32[batch, 4, 6, 6] = relu(add_1)
        mul: f32[batch, 4, 6, 6] = mul.Tensor(relu, relu_1)""",
        """
        add: f32[batch, 4, 6, 6] = add.Tensor(x, 1)
        relu: f32[batch, 4, 6, 6] = relu(add)
        mul: f32[batch, 4, 6, 6] = mul.Tensor(relu, relu)""",
    ),
    (
        DropMasks(),
        Apply(open_attention),
        IMAGE,
        """
        scaled_dot_product_attention: f32[batch, 4, 6, 6] = scaled_dot_product_attention(x, x, x, \
constant_ones)""",
        """
        scaled_dot_product_attention: f32[batch, 4, 6, 6] = scaled_dot_product_attention(x, x, x, None)""",
    ),
    (
        RecognizeActivations(),
        Apply(lambda _, x: x * F.relu6(x + 3) / 6),
        IMAGE,
        """
        add: f32[batch, 4, 6, 6] = add.Tensor(x, 3)
        relu6: f32[batch, 4, 6, 6] = relu6(add)
        mul: f32[batch, 4, 6, 6] = mul.Tensor(x, relu6)
        div: f32[batch, 4, 6, 6] = div.Tensor(mul, 6)""",
        """
        div: f32[batch, 4, 6, 6] = hardswish(x)""",
    ),
    (
        PoolGlobally(),
        Apply(lambda _, x: F.avg_pool2d(x, 9, ceil_mode=True)),
        IMAGE,
        """
        avg_pool2d: f32[batch, 4, 1, 1] = avg_pool2d(x, [9, 9], [], [0, 0], True)""",
        """
        avg_pool2d: f32[batch, 4, 1, 1] = adaptive_avg_pool2d(x, [1, 1])""",
    ),
    (
        GatherShuffles(),
        Apply(shuffled, c=conv(), d=conv()),
        IMAGE,
        """
        sym_size_int_1: batch = sym_size.int(x, 0)
        conv2d: f32[batch, 4, 6, 6] = conv2d(x, c_weight, c_bias)  # c
        view: f32[batch, 2, 2, 6, 6] = reshape(conv2d, [sym_size_int_1, 2, 2, 6, 6])
        transpose: f32[batch, 2, 2, 6, 6] = transpose.int(view, 1, 2)
        flatten: f32[batch, 4, 6, 6] = flatten.using_ints(transpose, 1, 2)
        conv2d_1: f32[batch, 4, 6, 6] = conv2d(flatten, d_weight, d_bias)  # d""",
        """
        conv2d: f32[batch, 4, 6, 6] = conv2d(x, c_weight, c_bias)  # c
        flatten: f32[batch, 4, 6, 6] = index_select(conv2d, 1, shuffle_2_of_4)
        conv2d_1: f32[batch, 4, 6, 6] = conv2d(flatten, d_weight, d_bias)  # d""",
    ),
    (
        ConvolveNorms(),
        Apply(lambda m, x: m.c(m.n(x)), n=nn.BatchNorm2d(4), c=conv(3)),
        IMAGE,
        """
        batch_norm: f32[batch, 4, 6, 6] = batch_norm(x, n_weight, n_bias, n_running_mean, n_running_var, \
False, 0.1, 1e-05, False)  # n
        conv2d: f32[batch, 4, 4, 4] = conv2d(batch_norm, c_weight, c_bias)  # c""",
        """
        batch_norm: f32[batch, 4, 6, 6] = conv2d(x, batch_norm_scale, batch_norm_shift, [1, 1], [0, 0], \
[1, 1], 4)  # n
        conv2d: f32[batch, 4, 4, 4] = conv2d(batch_norm, c_weight, c_bias)  # c""",
    ),
)


def operators(program: Program) -> str:
    """The part of the listing between tensors and outputs."""
    lines = str(program).split("operators:\n")[1].split("\noutputs:")[0].splitlines()
    return "\n".join(line.strip() for line in lines)


@pytest.mark.parametrize(
    ("stage", "model", "shape", "before", "after"), CASES, ids=[type(item[0]).__name__ for item in CASES]
)
def test_operators_before_and_after(
    stage: Pass, model: nn.Module, shape: tuple[int, ...], before: str, after: str
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    program = capture(model.eval(), x)
    outcome = stage.run(program)
    assert operators(program) == dedent(before).strip()
    assert operators(outcome.program) == dedent(after).strip()
    with torch.no_grad():
        torch.testing.assert_close(outcome.program.module(x), program.module(x), rtol=1e-5, atol=1e-6)
