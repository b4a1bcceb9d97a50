"""Layout operators that undo each other go, others become one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from fxcompress.graph.capture import capture
from fxcompress.passes.cancel_layout import CancelLayout
from tests.passes.fusing import assert_declines, assert_fuses
from tests.passes.models import Apply, Case

SHAPE = (2, 3, 4, 5)


def case(name: str, function: Callable[[Tensor], object]) -> Case:
    return Case(name, lambda: Apply(lambda m, x: function(x)), SHAPE)


def through_relu(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).relu().sigmoid().permute(0, 3, 1, 2) * 2


CHANGED = (
    (case("undone", lambda x: x.transpose(1, 2).transpose(2, 1) * 2), "mul"),
    (case("permuted_back", lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).exp()), "exp"),
    (case("composed", lambda x: x.permute(0, 2, 3, 1).transpose(1, 2)), "permute"),
    (case("through_elements", through_relu), "relu sigmoid mul"),
    (case("flat_and_back", lambda x: x.flatten(2).unflatten(2, (4, 5)).exp()), "exp"),
    (case("flat_twice", lambda x: x.flatten(2).flatten(1)), "reshape"),
    (case("batch_merged", lambda x: x.flatten(0, 1).reshape(-1, 3, 20)), "reshape"),
    (case("unsqueezed", lambda x: x.unsqueeze(1).squeeze(1).exp()), "exp"),
    (case("tokens_and_back", lambda x: x.flatten(2).mT.mT.reshape(-1, 3, 4, 5).exp()), "exp"),
    (case("shared_inner", lambda x: (y := x.transpose(1, 2)).transpose(1, 2) + y.sum()), "transpose sum add"),
)


@pytest.mark.parametrize(("found", "after"), CHANGED, ids=lambda item: getattr(item, "name", ""))
def test_cancels(found: Case, after: str) -> None:
    changes = {"tokens_and_back": 2}.get(found.name, 1)
    assert_fuses(CancelLayout(), found, after, changes)


KEPT = (
    case("no_inverse", lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 2, 3, 1)),
    case("softmax_between", lambda x: x.transpose(1, 3).softmax(-1).transpose(1, 3)),
    case("sum_between", lambda x: x.transpose(1, 2).cumsum(1).transpose(1, 2)),
    case("reshape_between", lambda x: x.transpose(1, 2).reshape(-1, 3, 4, 5).transpose(1, 2)),
    case("read_between", lambda x: (y := x.transpose(1, 2).relu()).transpose(1, 2).sum() + y),
    case("inner_read", lambda x: (y := x.flatten(2)).flatten(1).sum(1) + y.sum()),
)


@pytest.mark.parametrize("found", KEPT, ids=lambda item: item.name)
def test_keeps(found: Case) -> None:
    program = capture(found.build(), found.example())
    assert CancelLayout().run(program).program is program


def test_an_output_stays_a_tensor_of_its_own() -> None:
    assert_declines(
        CancelLayout(), case("output", lambda x: x.mT.mT), "an output of the model must be a tensor"
    )


def test_listing_after() -> None:
    model: nn.Module = Apply(lambda m, x: x.flatten(2).flatten(1))
    outcome = CancelLayout().run(capture(model, CHANGED[0][0].example()))
    (line,) = [
        line
        for line in str(outcome.program).splitlines()
        if "reshape" in line and " = " in line and "(" in line
    ]
    assert "reshape(x, [-1, 60])" in line
    assert outcome.changed == ("flatten and flatten_1 are one",)
