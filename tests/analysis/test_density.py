"""Patterns of zeros, read off the weights: found along what is summed over, and lost when channels go."""

from __future__ import annotations

import torch
from torch import nn

from fxcompress.analysis.density import patterns
from fxcompress.api.compress import compress
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.apply_masks import ApplyMasks
from fxcompress.pipeline import Journal
from fxcompress.plan.masking import plan_sparsity
from fxcompress.plan.sparsity import Sparsify
from tests.test_compensation import program, request


def masked(dense: Program, **options: object) -> Program:
    return ApplyMasks(plan_sparsity(dense, Sparsify(**options))).run(dense).program


def test_patterns_along_the_inputs() -> None:
    dense = program()
    assert patterns(dense) == {}
    assert patterns(masked(dense, pattern="2:4")) == {"3.weight": (2, 4), "6.weight": (2, 4)}
    assert patterns(masked(dense, pattern="1:4"))["3.weight"] == (1, 4)
    assert patterns(masked(dense, pattern="4:8"))["3.weight"] == (4, 8)
    assert patterns(masked(dense, ratio=0.5)) == {}


def test_zeros_along_the_outputs_are_no_pattern() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight[::2] = 0.0
    assert patterns(capture(layer.eval(), torch.randn(2, 16))) == {}


def test_a_pattern_that_pruning_breaks_is_told() -> None:
    """It went without a word: a sparse kernel would have refused the weights."""
    sparse = masked(program(), pattern="2:4")
    broken = compress(request(None), sparse, Journal())
    note = next(text for text in broken.notes if "breaks the 2:4 pattern" in text)
    assert "3.weight" in note
    assert "3.weight" not in patterns(broken.trainable)
    whole = compress(request(None), program(), Journal())
    assert not any("pattern" in text for text in whole.notes)
