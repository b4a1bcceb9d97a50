"""Attention over other than [batch, heads, positions, width], which torch's exporter refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.proof.parity import float_parity
from tests.lowering.test_decompose_forms import written
from tests.ops.building import aten

SIZES = {2: (5, 8), 3: (3, 5, 8), 4: (3, 2, 5, 8), 5: (3, 2, 4, 5, 8)}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.7},
    "hidden": {"attn_mask": torch.ones(5, 5).tril(1).bool()},
    "added": {"attn_mask": torch.randn(5, 5, generator=torch.Generator().manual_seed(1))},
}


class Attention(nn.Module):
    """Queries, keys and values of the last dimension; masks follow the dtype of the input."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 4)
        self.options = options

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        options = dict(self.options)
        if mask is not None:
            options["attn_mask"] = mask
        elif "attn_mask" in options and options["attn_mask"].is_floating_point():
            options["attn_mask"] = options["attn_mask"].to(x.dtype)
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), **options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rank", SIZES)
def test_the_same_values_at_any_rank(rank: int, options: str) -> None:
    """In float64 against torch, and as a file of float32 in the runtime."""
    model = Attention(OPTIONS[options]).eval()
    x = torch.randn(SIZES[rank], generator=torch.Generator().manual_seed(2))
    program = capture(model, (x,))
    float_parity(program, lower(program), [x])
    wide = program.to(torch.float64)
    with torch.no_grad():
        expected = wide.module(x.double())
    torch.testing.assert_close(written(wide, x.double())[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", SIZES)
def test_rows_that_see_nothing_are_zero_as_in_torch(rank: int) -> None:
    """In four dimensions, see `test_blind_rows.py`."""
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[1], mask[2, :3] = False, False
    wide = capture(Attention({"attn_mask": mask}).eval(), (torch.randn(SIZES[rank]),)).to(torch.float64)
    x = torch.randn(SIZES[rank], generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        expected = wide.module(x)
    assert not expected[..., 1, :].any()
    torch.testing.assert_close(written(wide, x)[0], expected, rtol=1e-10, atol=1e-10)
    narrow = wide.to(torch.float32)
    float_parity(narrow, lower(narrow), [x.float()])


@pytest.mark.parametrize("shape", [(3, 5, 5), (5, 5), (1, 5, 5)])
def test_masks_that_are_passed(shape: tuple[int, ...]) -> None:
    """A mask per sample, or one for all: another batch runs too."""
    model = Attention({}).eval()
    x, mask = torch.randn(3, 5, 8), torch.rand(shape) > 0.3
    mask = mask | torch.eye(5, dtype=torch.bool)
    program = capture(model, (x, mask))
    float_parity(program, lower(program), [x, mask])


def test_four_dimensions_are_left_to_the_exporter() -> None:
    program = capture(Attention({}).eval(), (torch.randn(SIZES[4]),))
    assert "softmax" not in str(program.graph)
    node = next(n for n in program.graph.nodes if n.target is aten.scaled_dot_product_attention.default)
    assert fxcompress.lowering.operator_forms.form_of(node) is None


def test_a_network_of_it_is_pruned_and_quantized() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    model = nn.Sequential(
        nn.Linear(8, 8), Attention({}), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)
    ).eval()
    result = fxcompress.optimize(model, (x,), prune=0.5, quantize="int8", calibration=[x])
    assert (result.report.ratio("macs") or 1.0) < 0.52
