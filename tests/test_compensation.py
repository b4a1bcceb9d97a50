"""Compensation inside `optimize`: on where there is calibration data, reported apart from the removal.

Accuracy near zero after pruning, and no recovery recipe: TP#147, TP#87, TP#296.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.api.compensation import ONCE
from fxcompress.api.compress import Compressed, compress
from fxcompress.api.request import Request
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.pipeline import Journal
from fxcompress.plan.prune import Prune
from fxcompress.recipes.recipe import recipe_of
from fxcompress.targets.catalog import resolve


def program() -> Program:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))
    return capture(model.eval(), (torch.randn(2, 2, 6, 6),))


def images(count: int = 4) -> list[Tensor]:
    return [torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def request(calibration: Any, compensate: bool | None = None) -> Request:
    return Request(
        recipe=recipe_of(Prune(0.5, block=1, compensate=compensate), None),
        calibration=calibration,
        target=resolve("onnxruntime"),
    )


def made(calibration: Any, compensate: bool | None = None) -> tuple[Compressed, Journal]:
    journal = Journal()
    return compress(request(calibration, compensate), program(), journal), journal


def names(result: Compressed) -> list[str]:
    return [proof.name for proof in result.proofs]


def test_it_is_on_where_there_is_calibration_data() -> None:
    """The removal is proven before anything lossy, and the finding names both errors."""
    result, journal = made(images())
    assert names(result) == ["masked-equivalence", "compensation"]
    finding = result.proofs[1]
    assert 0 < finding.error < finding.bound
    assert "re-fitted on 48 samples, chosen on 8 others, and the error is that of 8 more" in finding.detail
    steps = [entry.name for entry in journal.entries]
    assert steps.index("prove-pruning") < steps.index("compensate")
    entry = journal.entries[steps.index("compensate")]
    assert any("of the squared error left at" in line for line in entry.changed)


def test_few_samples_are_said_to_be_few() -> None:
    result, _ = made([images()[0]])
    assert "judged on 4 others; few samples: the error is optimistic" in result.proofs[1].detail


def test_it_can_be_switched_off() -> None:
    result, journal = made(images(), compensate=False)
    assert names(result) == ["masked-equivalence"]
    assert "compensate" not in [entry.name for entry in journal.entries]


def test_without_calibration_data_nothing_is_fitted() -> None:
    result, _ = made(None)
    assert names(result) == ["masked-equivalence"]


def test_asked_for_without_data_is_an_error() -> None:
    with pytest.raises(InputError, match="compensate=True needs calibration data"):
        made(None, compensate=True)


def test_data_that_can_be_read_once_is_left_to_others() -> None:
    """By default a note; an error where compensation was asked for."""
    result, _ = made(iter(images()))
    assert names(result) == ["masked-equivalence"]
    assert ONCE in result.notes
    with pytest.raises(InputError, match="read only once"):
        made(iter(images()), compensate=True)


def test_a_refusal_is_a_note() -> None:
    result, _ = made([images()[0][:1]])
    assert names(result) == ["masked-equivalence"]
    assert any("nothing is left to judge a correction by" in note for note in result.notes)


class Shared(nn.Module):
    """Two convolutions that are called twice each, of positive weights: they cannot be re-fitted; that their
    sums are smaller with fewer channels, their norms can make up for.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.back = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        with torch.no_grad():
            for layer in (self.wide, self.back):
                layer.weight.abs_()

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.back(torch.relu(self.wide(x))))
        return x.flatten(1)


def test_norms_are_measured_anew_where_layers_cannot_be_fitted() -> None:
    """Reported apart, and bounded by the error with the statistics of the original."""
    data = [torch.randn(32, 4, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    model = Shared()
    model.train()
    for batch in 12 * data:
        model(batch)
    journal = Journal()
    result = compress(request(data[:4]), capture(model.eval(), (data[0][:2],)), journal)
    assert names(result) == ["masked-equivalence", "batch-norm-statistics"]
    finding = result.proofs[1]
    assert 0 < finding.error < finding.bound
    assert "2 batch norms measured on 96 samples, judged on 32 others" in finding.detail
    steps = [entry.name for entry in journal.entries]
    assert steps.index("compensate") < steps.index("reestimate-batch-norm")


def test_norms_keep_their_statistics_where_layers_were_fitted_to_them() -> None:
    """The network of the first test: what its norm would gain is already in its running mean."""
    result, journal = made(images())
    assert "batch-norm-statistics" not in names(result)
    entry = next(item for item in journal.entries if item.name == "reestimate-batch-norm")
    assert "left out" in entry.declined[-1].reason
