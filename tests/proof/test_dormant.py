"""Masked equivalence of models with parts that are switched off: faults there must show all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse
from fxcompress.api.compress import compress
from fxcompress.errors import ProofError
from fxcompress.graph import edit, walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.loosening import loosened
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.proof.comparison import Equivalence
from fxcompress.proof.dormant import changes
from fxcompress.proof.masked import masked_equivalence
from tests.passes.packed import Packed, timm
from tests.test_compensation import request


class Scaled(nn.Module):
    """A residual branch behind a LayerScale of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d, self.c = (
            nn.Linear(*sizes) for sizes in ((8, 24), (24, 48), (48, 24), (24, 5))
        )
        self.gamma = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(h + self.gamma * self.d(self.b(h).relu()))


class Normed(nn.Module):
    """A branch whose batch norm has a gamma of zero, as zero_init_residual makes it; biases are zero too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 12, 1, bias=False)
        self.norm, self.c = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c((h + self.norm(self.d(self.b(h).relu()))).relu())


class Dead(nn.Module):
    """A path whose ReLU never fires."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        nn.init.constant_(self.b.bias, -1e4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(h) + self.c(self.b(h).relu())


def made(model: nn.Module, *shape: int) -> tuple[Program, PruningPlan, Program]:
    """The original, the plan and the pruned program; widths are loosened first."""
    torch.manual_seed(0)
    program = capture(model.eval(), torch.randn(shape))
    loose = loosened(program)
    plan = plan_pruning(analyse(loose), Prune(ratio=0.4, block=1), 16)
    return program, plan, PruneChannels(plan).run(loose).program


def spoiled(pruned: Program, name: str, change: Callable[[Tensor], Tensor]) -> Program:
    copy = pruned.copy()
    edit.set_tensor(copy, name, change(walk.tensor(copy, name).detach().clone()))
    return copy


def swapped_columns(weight: Tensor) -> Tensor:
    order = list(range(weight.shape[1]))
    return weight[:, [1, 0, *order[2:]]]


@pytest.mark.parametrize(
    ("model", "shape", "name"), [(Scaled, (4, 8), "d.weight"), (Normed, (2, 3, 4, 4), "d.weight")]
)
def test_two_channels_swapped_behind_zeros(model: type[nn.Module], shape: tuple[int, ...], name: str) -> None:
    program, plan, pruned = made(model(), *shape)
    assert masked_equivalence(program, pruned, plan).woken > 0
    with pytest.raises(ProofError, match="differs from the reference"):
        masked_equivalence(program, spoiled(pruned, name, swapped_columns), plan)


def test_how_many_parameters_were_woken() -> None:
    """Gamma asks for the second comparison; the bias and beta of zeros get numbers along with it."""
    found = masked_equivalence(*reordered(made(Normed(), 2, 3, 4, 4)))
    assert (found.woken, found.asleep, found.unheard) == (3, 0, ())
    assert found.output_error < 1e-12


def reordered(case: tuple[Program, PruningPlan, Program]) -> tuple[Program, Program, PruningPlan]:
    program, plan, pruned = case
    return program, pruned, plan


def test_one_gamma_of_zero_is_enough() -> None:
    model = Normed()
    with torch.no_grad():
        model.norm.weight.copy_(torch.linspace(0.0, 1.0, 12))
    program = capture(model.eval(), torch.randn(2, 3, 4, 4))
    delta = changes(program, 0)["norm.weight"]
    assert (delta != 0).tolist() == [True] + [False] * 11
    assert 0.1 < delta[0].abs() < 1.0, "the size of its neighbours"


def test_biases_of_zero_alone_need_no_second_comparison() -> None:
    model = nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 5))
    for layer in (model[0], model[3]):
        nn.init.zeros_(layer.bias)
    found = masked_equivalence(*reordered(made(model, 4, 8)))
    assert (found.woken, found.asleep, found.unheard) == (0, 0, ())


@pytest.mark.parametrize("packed", [False, True])
def test_parts_of_a_packed_weight_of_zeros(packed: bool) -> None:
    """The numbers go to the rewritten original and to the pruned program by the user's positions."""
    model = Packed(timm)
    nn.init.zeros_(model.qkv.weight)
    nn.init.zeros_(model.qkv.bias)
    program, plan, pruned = made(model, 2, 6, 16)
    assert plan.rewrites == ("split-packed-linears",)
    after = PackLinears().run(pruned).program if packed else pruned
    found = masked_equivalence(program, after, plan)
    assert (found.woken, found.asleep, found.unheard) == (2, 0, ())
    with pytest.raises(ProofError):
        masked_equivalence(program, spoiled(after, "out.weight", swapped_columns), plan)


def test_a_path_that_no_input_reaches_is_named() -> None:
    """Nothing can be proven of it: the report says so."""
    program, plan, pruned = made(Dead(), 4, 8)
    found = masked_equivalence(program, spoiled(pruned, "b.weight", lambda weight: -1.2 * weight), plan)
    assert found.unheard == ("b.weight", "b.bias")
    result = compress(request(None), program, Journal())
    assert "no output answers to b.weight, b.bias: compared in shape alone" in result.proofs[0].detail


def test_a_model_without_an_answer_to_other_numbers_keeps_its_zeros() -> None:
    """The logarithm of one plus a number that may be -1: NaN at a large scale, whatever its sign."""

    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(8, 24), nn.Linear(24, 5)
            self.gamma = nn.Parameter(torch.zeros(24))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x).relu()) + torch.sqrt(1e-4 - self.gamma.square()).sum()

    found: Equivalence = masked_equivalence(*reordered(made(Log(), 4, 8)))
    assert (found.woken, found.asleep) == (0, 1)


def test_gradients_are_asked_where_the_caller_has_switched_them_off() -> None:
    """torch's `grad` fails with an AssertionError there."""
    program, plan, pruned = made(Dead(), 4, 8)
    with torch.no_grad():
        assert masked_equivalence(program, pruned, plan).unheard == ("b.weight", "b.bias")
