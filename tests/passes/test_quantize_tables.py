"""Tables in int8: before and after, what must be left, and what the runtimes make of a lookup in integers."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxcompress
from fxcompress.analysis.cost import cost
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.quantize_tables import QuantizeTables
from fxcompress.plan.placement import place
from fxcompress.plan.tables import LATER
from fxcompress.proof.parity import parity_at_sizes
from fxcompress.runtime import openvino as adapter
from fxcompress.runtime.inspection import executed
from fxcompress.targets.catalog import resolve
from tests.passes.models import Apply
from tests.passes.test_quantize_tensors import structure

ROWS, WIDTH = 4100, 64
IDS = torch.randint(0, ROWS, (2, 5), generator=torch.Generator().manual_seed(1))


def table(rows: int = ROWS, width: int = WIDTH) -> Tensor:
    """Rows of very different sizes, one of them all zeros."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, width, generator=generator) * torch.logspace(-3, 3, rows).unsqueeze(1)
    values[7] = 0.0
    return values


def twice() -> Program:
    """One table, looked up twice."""
    return capture(Apply(lambda m, x: F.embedding(x, m.t) + F.embedding(x.flip(1), m.t), t=table()), IDS)


def test_before_and_after() -> None:
    made = QuantizeTables().run(twice())
    well_formed(made.program)
    assert structure(made.program) == dedent("""\
        embedding_int8 = embedding(t_int8, x)
        embedding_float = to(embedding_int8)
        embedding_scale = embedding(t_scale, x)
        embedding = mul(embedding_float, embedding_scale)
        flip = flip(x)
        embedding_1_int8 = embedding(t_int8, flip)
        embedding_1_float = to(embedding_1_int8)
        embedding_1_scale = embedding(t_scale, flip)
        embedding_1 = mul(embedding_1_float, embedding_1_scale)
        add = add(embedding, embedding_1)""")
    assert made.changed == ("t stored as int8, one scale per row",)
    assert made.lookups == ("embedding", "embedding_1")


def test_a_table_of_integers_counts_as_the_parameters_it_was() -> None:
    program = twice()
    assert cost(QuantizeTables().run(program).program).params == cost(program).params


def test_every_element_is_within_half_a_step_of_its_row() -> None:
    ids = torch.arange(ROWS).unsqueeze(0)
    program = capture(Apply(lambda m, x: F.embedding(x, m.t), t=table()), ids)
    found = QuantizeTables().run(program).program.module(ids)
    step = table().abs().amax(dim=1, keepdim=True) / 127
    assert ((found[0] - table()).abs() <= step * 0.5001).all()
    assert not found[0, 7].any()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Apply(lambda m, x: F.embedding(x, m.t), t=table(4000)), "256000 elements in rows of 64 are too few"),
        (Apply(lambda m, x: F.embedding(x, m.t), t=table(40_000, 8)), "in rows of 8 are too few"),
        (Apply(lambda m, x: F.embedding(x, m.t), t=table().double()), "no matrix of float32"),
        (Apply(lambda m, x: F.embedding(x, m.t), t=table() / 0.0), "NaN or an infinity"),
        (Apply(lambda m, x: F.linear(F.embedding(x, m.t), m.t), t=table()), "also read by linear, in float"),
    ],
)
def test_declines(model: nn.Module, reason: str) -> None:
    program = capture(model, IDS)
    made = QuantizeTables().run(program)
    assert made.program is program
    assert reason in made.declined[0].reason


@pytest.mark.parametrize("pattern", ["t", "embedding_1"])
def test_what_is_excluded_stays(pattern: str) -> None:
    made = QuantizeTables(exclude=(pattern,)).run(twice())
    assert [item.reason for item in made.declined] == ["excluded by name"]


def test_the_runtimes_look_integers_up(tmp_path: Path) -> None:
    made = QuantizeTables().run(twice()).program
    made.save(tmp_path / "tables.fxc")
    model = lower(load(tmp_path / "tables.fxc"))
    parity_at_sizes(made, model)
    integers = [item for item in executed(model) if item.op_type == "Gather" and item.integer]
    assert len(integers) == 2
    assert len(model.SerializeToString()) < 0.3 * table().numel() * 4
    assert not any(node.op_type == "DequantizeLinear" for node in model.graph.node)


class Tied(nn.Module):
    """A language model in small: what comes out of the table is scored against it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, ROWS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.table(ids))))


def test_placement_says_what_becomes_of_lookups() -> None:
    program = capture(Tied().eval(), IDS)
    found = place(program, resolve("onnxruntime"))
    assert set(found.kernels) >= {"linear", "linear_1"}
    assert found.declined["embedding"] == LATER
    gpu = place(program, resolve("tensorrt"))
    assert gpu.declined["embedding"] == "tables are left in float"
    assert gpu.declined["linear_1"] == "its weight is also read by embedding, which stays in float"


@pytest.mark.parametrize("mode", ["int8", "int8-dynamic", "int8-weights", "int4-weights"])
def test_a_tied_head_and_its_table_both_become_integers(mode: str) -> None:
    torch.manual_seed(0)
    calibration = [torch.randint(0, ROWS, (4, 5)) for _ in range(2)]
    result = fxcompress.optimize(
        Tied().eval(), IDS, quantize=fxcompress.Quantize(mode=mode, precision="full"), calibration=calibration
    )
    assert result.report.ratio("bytes") < 0.55, "integers twice, at most, are half of the floats"
    kernels = result.plan.precision
    assert {kernels[name] for name in ("embedding", "linear", "linear_1")} == {mode.split("-")[0]}
    names = [entry.name for entry in result.report.passes]
    assert "quantize-tables" in names


@pytest.mark.skipif(not adapter.available(), reason="OpenVINO is not installed")
def test_openvino_reads_them() -> None:
    made = QuantizeTables().run(twice()).program
    session = adapter.compiled(lower(made).SerializeToString(), exact=True)
    (found,) = adapter.run(session, {"x": IDS.numpy()}).values()
    assert torch.allclose(torch.as_tensor(found), made.module(IDS), rtol=1e-4, atol=1e-4)
