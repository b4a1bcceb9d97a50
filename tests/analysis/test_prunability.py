"""What pruning can reach, counted by hand; and the obstacles with what each alone keeps out of reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse
from fxcompress.analysis.prunability import Prunability, prunability
from fxcompress.graph.capture import capture


def measured(model: nn.Module, *example: Tensor) -> Prunability:
    return prunability(analyse(capture(model.eval(), example)))


def test_a_chain_is_counted_by_hand() -> None:
    found = measured(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 6))
    assert found.params.total == 6 * 8 + 8 + 8 * 4 + 4
    assert found.params.prunable == found.params.total - 4  # all but the last bias
    assert found.params.removable == 7 * (6 + 1 + 4)  # seven of eight indices
    assert found.macs.total == found.macs.prunable == 6 * 8 + 8 * 4
    assert found.macs.removable == 7 * (6 + 4)
    assert found.macs.share == 1
    assert found.macs.removable_share == 7 / 8


def test_obstacles_come_costliest_first_with_reason_and_line() -> None:
    found = measured(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 6))
    output, given = found.obstacles
    assert (output.axis, output.size, output.params, output.macs) == ("2.weight[0]", 4, 4, 0)
    assert output.members == ("2.weight[0]", "2.bias[0]")
    assert (given.axis, given.reason, given.params) == ("0.weight[1]", "a model input", 0)


class Sorted(nn.Module):
    """Sorting along the channels lets positions trade places by value: none may go, before or after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).sort(-1).values)


def test_an_operator_that_freezes_costs_what_it_keeps_out_of_reach() -> None:
    found = measured(Sorted(), torch.randn(2, 6))
    assert (found.params.prunable, found.macs.prunable) == (0, 0)
    assert found.params.share == found.macs.removable_share == 0
    blamed = next(item for item in found.obstacles if item.operator == "sort")
    assert blamed.axis == "first.weight[0]"
    assert "test_prunability.py" in (blamed.source or "")
    assert blamed.members == ("first.weight[0]", "first.bias[0]", "last.weight[1]")
    assert (blamed.params, blamed.macs) == (6 * 8 + 8 + 8 * 4, 6 * 8 + 8 * 4)


class HalfFrozen(nn.Module):
    """Eight of the twelve channels that `mix` reads come from an input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(6, 4, bias=False), nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mix(torch.cat([self.inner(x), y], -1))


def test_a_concatenation_is_within_reach_in_part() -> None:
    found = measured(HalfFrozen(), torch.randn(2, 6), torch.randn(2, 8))
    assert found.params.total == 6 * 4 + 12 * 5
    assert found.params.prunable == 6 * 4 + 4 * 5
    costs = {item.axis: item.params for item in found.obstacles}
    assert costs == {"mix.weight[0]": 8 * 5, "mix.weight[1]:1": 8 * 5, "inner.weight[1]": 0}


@pytest.mark.parametrize("width", [1, 3])
def test_nothing_to_prune_is_zero_and_not_an_error(width: int) -> None:
    found = measured(nn.Sequential(nn.Linear(3, width)), torch.randn(2, 3))
    assert found.params.share == found.params.removable_share == 0
    without = measured(nn.ReLU(), torch.randn(2, 3))
    assert without.params.share == without.macs.share == 0
    assert without.obstacles == ()
