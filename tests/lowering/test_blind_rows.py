"""Rows of a stored mask that see nothing are zero in the file, however the mask is made of what is stored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.capture import capture
from fxcompress.lowering.blind_rows import open_blind_rows
from fxcompress.lowering.lower import lower
from fxcompress.proof.parity import float_parity

HIDDEN = torch.ones(6, 6, dtype=torch.bool)
HIDDEN[1], HIDDEN[2, :3] = False, False
ADDED = torch.zeros(6, 6).masked_fill(HIDDEN.logical_not(), float("-inf"))

MADE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as it is": lambda m, x: m,
    "sliced": lambda m, x: m[: x.shape[2], : x.shape[2]],
    "unsqueezed": lambda m, x: m[None, None],
    "expanded": lambda m, x: m[None, None].expand(x.shape[0], 1, 6, 6),
    "of three dimensions": lambda m, x: torch.stack([m, m])[0],
    "computed": lambda m, x: m if m.dtype == torch.bool else m * 2,
    "filled": lambda m, x: torch.zeros(6, 6).masked_fill(
        m if m.dtype == torch.bool else m < 0, float("-inf")
    ),
}


class Masked(nn.Module):
    """Attention of two heads under a stored mask."""

    mask: Tensor

    def __init__(self, mask: Tensor, made: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, 2 * x, x + 1, attn_mask=self.made(self.mask, x))


@pytest.mark.parametrize(
    ("made", "mask"),
    [
        *(pytest.param(made, ADDED, id=f"{made}, float") for made in MADE),
        pytest.param("as it is", HIDDEN, id="as it is, bool"),
        *(pytest.param(made, HIDDEN, id=f"{made}, bool", marks=pytest.mark.slow) for made in list(MADE)[1:]),
    ],
)
def test_rows_that_see_nothing_are_zero(made: str, mask: Tensor) -> None:
    x = torch.randn(2, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    program = capture(Masked(mask, MADE[made]).eval(), (x,))
    with torch.no_grad():
        blind = 3 if made == "filled" and mask.dtype == torch.bool else 1
        assert made == "filled" or not program.module(x)[:, :, blind].any()
    float_parity(program, lower(program), [x])


def test_a_module_of_torch_under_such_a_mask_is_deployed() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.register_buffer("mask", ADDED)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]

    torch.manual_seed(0)
    x = torch.randn(2, 6, 8)
    result = fxcompress.optimize(Encoder().eval(), x)
    assert result.report.output_error is not None
    assert result.report.output_error.max < 1e-5


def test_masks_whose_rows_all_see_something_stay() -> None:
    for mask in (torch.ones(6, 6).tril().bool(), torch.zeros(6, 6).masked_fill(ADDED.isinf().tril(-1), -1.0)):
        program = capture(Masked(mask, MADE["as it is"]).eval(), (torch.randn(2, 2, 6, 4),))
        assert open_blind_rows(program) is program


def test_a_mask_that_several_share_is_opened_for_all() -> None:
    class Twice(Masked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    x = torch.randn(2, 2, 6, 4)
    program = capture(Twice(ADDED, MADE["unsqueezed"]).eval(), (x,))
    float_parity(program, lower(program), [x])
