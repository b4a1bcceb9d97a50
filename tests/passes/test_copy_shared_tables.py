"""Tables that tie layers together are copied, and only those; the program computes the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.copy_shared_tables import CopySharedTables
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import make_plan
from fxcompress.proof.masked import masked_equivalence
from tests.passes.models import assert_same_function


class Scaled(nn.Module):
    """Layers of eight channels that are scaled by one table, each read by a linear of its own."""

    def __init__(self, table: Tensor | nn.Parameter, layers: int = 2) -> None:
        super().__init__()
        if isinstance(table, nn.Parameter):
            self.table = table
        else:
            self.register_buffer("table", table)
        self.into = nn.ModuleList(nn.Linear(3, 8) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(8, 2) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.table.cos()
        pairs = zip(self.into, self.out, strict=True)
        return sum(out(into(x).tanh() * scale) for into, out in pairs)


def program_of(model: nn.Module, *inputs: Tensor) -> Program:
    torch.manual_seed(0)
    return capture(model.eval(), inputs or torch.randn(2, 3))


@cache
def scaled() -> Program:
    torch.manual_seed(0)
    return program_of(Scaled(torch.rand(8)))


def widths(program: Program) -> list[int]:
    return sorted(group.size for group in analyse(program).groups)


def test_each_layer_has_a_width_of_its_own() -> None:
    before = str(scaled())
    outcome = CopySharedTables().run(scaled())
    well_formed(outcome.program)
    assert (widths(scaled()), widths(outcome.program)) == ([8], [8, 8])
    assert outcome.changed == ("table: 2 copies",)
    assert_same_function(scaled(), outcome.program, 0.0)
    assert str(scaled()) == before


def test_listing_before_and_after() -> None:
    outcome = CopySharedTables().run(scaled())
    lines = str(scaled()).splitlines(), str(outcome.program).splitlines()
    tables = [[line for line in text if "buffer" in line] for text in lines]
    assert tables == [
        ["  table: f32[8] buffer table"],
        ["  table_0: f32[8] buffer table_0", "  table_1: f32[8] buffer table_1"],
    ]
    readers = [[line.split(" = ")[1] for line in text if "cos" in line] for text in lines]
    assert readers == [
        ["cos(table)", "mul.Tensor(tanh, cos)", "mul.Tensor(tanh_1, cos)"],
        ["cos(table_0)", "cos(table_1)", "mul.Tensor(tanh, cos_1)", "mul.Tensor(tanh_1, cos_2)"],
    ]


def test_copies_are_stated_under_their_own_names() -> None:
    """They are cut differently: nothing can be said about the user's one table."""
    loose = CopySharedTables().run(scaled()).program
    plan = make_plan(analyse(loose), {"into.0.weight[0]": (0, 1, 5), "into.1.weight[0]": (2, 7)})
    assert plan.copies == {"table_0": {0: (0, 1, 5)}, "table_1": {0: (2, 7)}}
    assert "table" not in plan.kept
    assert plan.kept["into.1.weight"] == {0: (2, 7)}
    pruned = PruneChannels(plan).run(scaled()).program
    assert masked_equivalence(scaled(), pruned, plan).response > 0


def test_a_second_run_changes_nothing() -> None:
    loose = CopySharedTables().run(scaled()).program
    assert CopySharedTables().run(loose).program is loose


def test_readers_that_are_tied_anyway_share_one() -> None:
    """Two products of one layer read the table: they have one copy, as the other layer has."""

    class Both(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            first = self.into[0](x).tanh() * self.table.cos() + self.into[1](x).tanh() * self.table.sin()
            second = self.into[2](x).tanh() * self.table.cos()
            return self.out[0](first) + self.out[2](second)

    outcome = CopySharedTables().run(program_of(Both(torch.rand(8), 3)))
    assert outcome.changed == ("table: 2 copies",)
    assert widths(outcome.program) == [8, 8]


class Summed(Scaled):
    """The layers are added: their width is one, whatever they read."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out[0](sum(into(x).tanh() * self.table for into in self.into))


def test_declined_where_nothing_is_loosened() -> None:
    program = program_of(Summed(torch.rand(8)))
    outcome = CopySharedTables().run(program)
    assert outcome.program is program
    assert [(item.site, item.reason) for item in outcome.declined] == [
        ("table", "its readers have one width anyhow")
    ]


def test_declined_where_a_copy_is_large() -> None:
    outcome = CopySharedTables(max_bytes=63).run(scaled())
    assert outcome.program is scaled()
    assert [item.reason for item in outcome.declined] == ["a copy takes 64 bytes, more than 63"]
    assert CopySharedTables(max_bytes=64).run(scaled()).changed


class Shared(nn.Module):
    """A batch norm without weights, called on the channels of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.too, self.norm = nn.Linear(3, 8), nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.into(x)) ** 2 + self.norm(self.too(x)).tanh()


class Activations(Scaled):
    """What is read twice comes from an input, not from a table."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.table * x[:, :1]
        return self.out[0](self.into[0](x) * scale) + self.out[1](self.into[1](x) * scale)


@pytest.mark.parametrize(
    "build",
    [
        Shared,
        lambda: Activations(torch.rand(8)),
        lambda: Scaled(torch.rand(8), 1),
        lambda: Scaled(nn.Parameter(torch.rand(8))),
    ],
    ids=["running statistics", "an activation", "one reader", "a parameter"],
)
def test_not_a_shared_table(build: Callable[[], nn.Module]) -> None:
    program = program_of(build())
    outcome = CopySharedTables().run(program)
    assert outcome.program is program
    assert outcome.declined == ()


def test_trained_tables_are_copied_when_asked() -> None:
    """The copies are parameters, and the plan says by name that it was made after this rewrite."""
    program = program_of(Scaled(nn.Parameter(torch.rand(8))))
    outcome = CopySharedTables(trainable=True).run(program)
    parameters = dict(outcome.program.module.named_parameters())
    assert {"table_0", "table_1"} <= set(parameters)
    assert "table" not in parameters
    plan = make_plan(analyse(outcome.program), {"into.0.weight[0]": (0, 1, 5)})
    assert plan.rewrites == ("copy-shared-tables(trainable)",)
    pruned = PruneChannels(plan).run(program).program
    assert masked_equivalence(program, pruned, plan).response > 0


def test_shared_weights_are_no_tables() -> None:
    """A linear that two layers share stays shared, even where trained tables are copied."""

    class Sharing(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return self.out[0](self.into[0](x)) + self.out[0](self.into[1](x).tanh())

    outcome = CopySharedTables(trainable=True).run(program_of(Sharing(torch.rand(8))))
    assert not [line for line in outcome.changed if "out" in line]
