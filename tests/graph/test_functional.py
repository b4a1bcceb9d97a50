"""In-place operations become out-of-place ones with the same results, or the capture refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxcompress.errors import CaptureError
from fxcompress.graph.capture import capture
from fxcompress.graph.functional import mutates
from tests.graph.models import Apply, image


def chained(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = F.leaky_relu(F.hardtanh(m.conv(x).clamp_(-1, 1), inplace=True), inplace=True)
    return F.hardswish(F.silu(y, inplace=True), inplace=True).masked_fill_(x > 0, 3.0).div_(2)


def both_names(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    z = y.relu_()
    return y + z  # y is the rectified value as well


def old_value_kept(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    before = y * 1
    y.mul_(3)
    return before + y


def through_identity(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    z = F.dropout(y, 0.5, training=False)  # the same memory
    z.add_(1)
    return y * z


def view_follows_base(m: Any, x: torch.Tensor) -> Any:
    y = m.conv(x)
    part, flat = y[:, 0], y.view(-1, 4, 36)
    y.add_(1)
    return part, flat


def base_follows_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y[:, 0] = 0
    y[:, 1:3] = x[:, 2:]
    y[:, 3:] += 1
    return y * 2


def through_transpose(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y.transpose(1, 2)[:, 1] = 5
    y.permute(0, 2, 3, 1)[..., 0] *= 2
    y.flatten(2)[:, :, 0] = 7
    return y


def by_mask(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y[x[:, 0, 0, 0] > 0] = 0
    return y


def cast_back(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y += x.double()
    return y


def filled(m: Any, x: torch.Tensor) -> Any:
    y = torch.zeros_like(x)
    y[:, :, 1:] = m.conv(x)[:, :, :-1]
    z = m.conv(x)
    z.fill_(2.0)
    w = m.conv(x)
    w.copy_(x[:1])
    return y, z, w, m.conv(x).zero_()


def reshaped(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y.unsqueeze_(1)
    return y


FUNCTIONS = [
    chained, both_names, old_value_kept, through_identity, view_follows_base, base_follows_view,
    through_transpose, by_mask, cast_back, filled, reshaped,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_results_stay_the_same_without_writes(function: Any) -> None:
    model = Apply(function).eval()
    program = capture(model, image())
    assert not any(mutates(node) for node in program.graph.nodes)
    assert program.signature.dynamic, "the batch is dynamic"
    for batch in (1, 3):
        torch.testing.assert_close(program(image(batch, seed=1)), model(image(batch, seed=1)))


def test_overwriting_the_input_is_noted() -> None:
    program = capture(Apply(lambda m, x: m.conv(x.mul_(2))).eval(), image())
    assert any("overwrites its input x" in note for note in program.notes)
    x = image()
    program(x)
    assert torch.equal(x, image())


def writes_state(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.state.add_(1)
    return m.conv(x) * m.state.sum()


def writes_through_expand(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    y.diagonal(dim1=2, dim2=3).add_(1)
    return y


def writes_through_chunks(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = m.conv(x)
    first, second = y.chunk(2, 1)
    first.relu_()
    return torch.cat([first, second], 1) + y


@pytest.mark.parametrize(
    "function", [writes_state, writes_through_expand, writes_through_chunks], ids=lambda f: f.__name__
)
def test_what_cannot_be_rewritten_is_refused_with_the_line(function: Any) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Apply(function).eval(), image())
    assert caught.value.hint is not None
    assert caught.value.source is not None


def test_a_number_read_from_a_tensor_is_refused_by_name() -> None:
    """DeBERTa makes a factor of its sequence length, reads it back and writes in place elsewhere."""

    class Reader(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.zeros_like(x)
            y += x
            return y * (x[0] > 0).sum().item()

    with pytest.raises(CaptureError, match="reads a number from a tensor"):
        capture(Reader().eval(), torch.randn(2, 4))
