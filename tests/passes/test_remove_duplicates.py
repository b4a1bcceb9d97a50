"""What is computed twice is computed once; what only looks alike is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.passes.remove_duplicates import RemoveDuplicates
from tests.passes.fusing import assert_declines, assert_fuses
from tests.passes.models import Apply, Case


def case(name: str, function: Callable[[nn.Module, Tensor], object], **parts: nn.Module) -> Case:
    return Case(name, lambda: Apply(function, **parts), (2, 6, 4))


def tower(m: nn.Module, x: Tensor) -> Tensor:
    return (x.exp() * 2).sum(1) + (x.exp() * 2).sum(1).relu()


REMOVED = (
    (case("same", lambda m, x: x.relu() + x.relu()), "relu add", 1),
    (case("tower", tower), "exp mul sum relu add", 3),
    (case("layer", lambda m, x: m.c(x) * m.c(x).exp(), c=nn.Linear(4, 3)), "linear exp mul", 1),
    (
        case("pieces", lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1]),
        "chunk <built-in function getitem> <built-in function getitem> mul",
        1,
    ),
)


@pytest.mark.parametrize(("found", "after", "changes"), REMOVED, ids=lambda item: getattr(item, "name", ""))
def test_removes(found: Case, after: str, changes: int) -> None:
    assert_fuses(RemoveDuplicates(), found, after, changes)


KEPT = (
    case("other_argument", lambda m, x: x.sum(1) + x.sum(-2, keepdim=False).relu()),
    case("number_types", lambda m, x: x * 2 + x * 2.0),
    case("zeros", lambda m, x: x.clamp_min(0.0) + x.clamp_min(-0.0)),
    case("random", lambda m, x: torch.rand_like(x) - torch.rand_like(x) + x),
    case("other_weights", lambda m, x: m.c(x) * m.d(x), c=nn.Linear(4, 3), d=nn.Linear(4, 3)),
)


@pytest.mark.parametrize("found", KEPT, ids=lambda item: item.name)
def test_keeps(found: Case) -> None:
    program = capture(found.build().eval(), found.example())
    assert RemoveDuplicates().run(program).program is program


def test_dropout_in_training_draws_twice() -> None:
    model = Apply(lambda m, x: m.d(x) + m.d(x), d=nn.Dropout(0.5)).eval()
    program = capture(model, torch.randn(2, 4)).train()
    assert RemoveDuplicates().run(program).program is program


def test_norms_in_training_keep_state() -> None:
    model = Apply(lambda m, x: m.b(x) + m.b(x), b=nn.BatchNorm1d(6)).eval()
    program = capture(model, torch.randn(2, 6, 4)).train()
    assert RemoveDuplicates().run(program).program is program


def test_two_outputs_stay_two_tensors() -> None:
    assert_declines(
        RemoveDuplicates(), case("outputs", lambda m, x: (x.relu(), x.relu())), "a tensor of its own"
    )
