"""A mask that hides nothing goes; one that may hide something stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.passes.drop_masks import DropMasks
from tests.passes.fusing import assert_fuses
from tests.passes.models import Apply, Case


class Masked(nn.Module):
    """Attention of three heads over five positions, under a stored mask."""

    mask: Tensor

    def __init__(self, mask: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        mask = self.function(x, self.mask)
        return F.scaled_dot_product_attention(x, x.exp(), x * 2, attn_mask=mask)


def as_it_is(x: Tensor, mask: Tensor) -> Tensor:
    return mask


def expanded(x: Tensor, mask: Tensor) -> Tensor:
    return mask[None, None].expand(x.shape[0], 1, 5, 5)


def case(name: str, mask: Tensor, function: Callable[[Tensor, Tensor], Tensor] = as_it_is) -> Case:
    return Case(name, lambda: Masked(mask, function), (2, 3, 5, 4))


DROPPED = (
    case("true", torch.ones(5, 5, dtype=torch.bool)),
    case("expanded", torch.ones(5, 5, dtype=torch.bool), expanded),
    case("zero", torch.zeros(5, 5), expanded),
)


@pytest.mark.parametrize("found", DROPPED, ids=lambda item: item.name)
def test_drops(found: Case) -> None:
    outcome = assert_fuses(DropMasks(), found, "exp mul scaled_dot_product_attention")
    assert list(outcome.program.module.buffers()) == []


KEPT = (
    case("causal", torch.ones(5, 5, dtype=torch.bool).tril()),
    case("bias", torch.rand(5, 5), expanded),
    case("computed", torch.ones(5, 5, dtype=torch.bool), lambda x, mask: mask & (x[0, 0, 0, 0] > -9)),
    Case(
        "trainable",
        lambda: Apply(lambda m, x: F.scaled_dot_product_attention(x, x, x, m.bias), bias=torch.zeros(5, 5)),
        (2, 3, 5, 4),
    ),
)


@pytest.mark.parametrize("found", KEPT, ids=lambda item: item.name)
def test_keeps(found: Case) -> None:
    program = capture(found.build().eval(), found.example())
    assert DropMasks().run(program).program is program
