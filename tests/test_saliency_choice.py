"""A saliency chosen by the caller, through the whole call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import InputError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.first.weight[::2] *= 10.0
            self.first.bias[::2] = -100.0  # large weights that never fire

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.relu(self.first(x)))))


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(3)
    ]


@pytest.mark.parametrize(
    "saliency",
    ["taylor", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("reconstruction", "elimination"))],
)
def test_data_sees_what_weights_do_not(saliency: str) -> None:
    """Channels with large weights that never fire go first (the pain: accuracy near zero, TP#147, TP#87)."""
    options = fxcompress.Prune(0.3, saliency=saliency, block=1, protect=("second.bias",), compensate=False)
    result = fxcompress.optimize(Net().eval(), torch.randn(2, 4), prune=options, calibration=data())
    kept = result.plan.kept["first.weight"][0]
    assert set(range(1, 16, 2)) <= set(kept)
    assert "gather-evidence" in [entry.name for entry in result.report.passes]
    assert result.report.settings["prune"]["saliency"] == saliency
    assert not any("says nothing" in note for note in result.report.notes)


def test_a_group_that_the_saliency_does_not_know_is_reported() -> None:
    options = fxcompress.Prune(0.3, saliency="batch_norm", block=1)
    result = fxcompress.optimize(Net().eval(), torch.randn(2, 4), prune=options)
    assert any(
        note.startswith("batch_norm says nothing about") and "ranked by l2" in note
        for note in result.report.notes
    )


def test_data_is_asked_for_and_must_be_readable_again() -> None:
    options = fxcompress.Prune(0.3, saliency="taylor", block=1)
    with pytest.raises(InputError, match="'taylor' is measured on data, and there is none"):
        fxcompress.optimize(Net().eval(), torch.randn(2, 4), prune=options)
    with pytest.raises(InputError, match="needed again"):
        fxcompress.optimize(Net().eval(), torch.randn(2, 4), prune=options, calibration=iter(data()))
