"""Operators that we write in others before export: the same values, for any batch, and files that run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxcompress.errors import LoweringError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering import decompose as decompose_module
from fxcompress.lowering import operator_forms
from fxcompress.lowering.decompose import apply_forms, translatable
from fxcompress.lowering.lift import lift
from fxcompress.lowering.lower import lower
from fxcompress.lowering.operator_forms import FORMS
from fxcompress.lowering.provenance import values
from fxcompress.proof.parity import float_parity, parity_at_sizes
from fxcompress.runtime.session import open_session, run
from tests.ops.building import Net, aten

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

Build = Callable[[Net], fx.Node]


def written(program: Program, *inputs: Tensor) -> list[Tensor]:
    """What the program computes once its operators have been written in others."""
    lifted = lift(program)
    apply_forms(lifted.graph)
    lifted.graph.lint()
    calls = [node.target for node in lifted.graph.nodes if node.op == "call_function"]
    of_some = {
        aten.lstm.input,
        aten.scaled_dot_product_attention.default,
    }  # and these have a form of their own
    assert not [target for target in calls if target in FORMS and target not in of_some]
    lifted.graph_module.recompile()
    tensors = [lifted.state_dict[spec.target] for spec in lifted.graph_signature.input_specs if spec.target]
    with torch.no_grad():
        return list(lifted.graph_module(*tensors, *inputs))


def same(build: Build, *, dynamic: bool = True) -> None:
    """Both at the example's batch and at another one, in float64."""
    net = Net(dynamic=dynamic)
    program = net.program(build(net)).to(torch.float64)
    example = program.flat_example()
    again = [leaf[torch.arange(5) % 2] for leaf in example] if dynamic else example
    for inputs in (example, again):
        with torch.no_grad():
            expected = program.module(*inputs)
        torch.testing.assert_close(written(program, *inputs), list(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 2.0, 3.0, float("inf")])
def test_distances(p: float) -> None:
    same(lambda net: net(aten.cdist.default, net.input(4, 6), net.parameter(3, 6), p))


@pytest.mark.parametrize(("mode", "rows"), [(None, 3), (None, 26), (0, 26), (1, 3), (2, 26)])
def test_distances_by_a_matrix_product(mode: int | None, rows: int) -> None:
    """As PyTorch does it: asked for, or not forbidden and there are many rows."""

    def build(net: Net) -> fx.Node:
        return net(aten.cdist.default, net.input(4, 6), net.input(rows, 6), 2.0, mode)

    same(build)
    net = Net()
    lifted = lift(net.program(build(net)))
    apply_forms(lifted.graph)
    product = {node.target for node in lifted.graph.nodes} & {aten.bmm.default, aten.matmul.default}
    assert bool(product) == (mode == 1 or (mode in (None, 0) and rows > 25))


IDS = torch.tensor([[0, 3, 3], [5, 1, 4]])


@pytest.mark.parametrize("padding", [None, 3, -2])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_bags_of_one_size(mode: int, padding: int | None) -> None:
    """Two-dimensional ids: an ordinary reduction, no scattering; a bag of nothing but padding is zero."""

    def build(net: Net) -> fx.Node:
        ids = net.input(value=torch.cat([IDS, torch.tensor([[3, 3, 3], [4, 4, 4]])])[2 * (mode % 2) :][:2])
        starts = net(aten.arange.start_step, 0, net(aten.sym_numel.default, ids), 3)
        flat, table = net(aten.reshape.default, ids, [-1]), net.parameter(6, 4)
        arguments = (False, mode, False, None, False)
        if padding is None:
            return net.item(net(aten.embedding_bag.default, table, flat, starts, *arguments), 0)
        return net.item(net(aten.embedding_bag.padding_idx, table, flat, starts, *arguments, padding), 0)

    same(build)
    net = Net()
    lifted = lift(net.program(build(net)))
    apply_forms(lifted.graph)
    assert not [node for node in lifted.graph.nodes if "scatter" in str(node.target)]


@pytest.mark.parametrize("offsets", [[0, 2, 2, 5], [0, 0, 7]])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [-1, 3])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_bags_that_begin_at_offsets(mode: int, padding: int, last: bool, offsets: list[int]) -> None:
    """Some of them are empty, at the end too."""

    def build(net: Net) -> fx.Node:
        ids = net.input(value=torch.tensor([0, 3, 3, 5, 1, 4, 2]))
        given = net.buffer(torch.tensor([*offsets, 7] if last else offsets))
        weights = net.parameter(7) if mode == 0 else None
        table = net.parameter(6, 4)
        arguments = (table, ids, given, False, mode, False, weights, last, padding)
        return net.item(net(aten._embedding_bag_forward_only.default, *arguments), 0)

    same(build, dynamic=False)


def test_bags_whose_bookkeeping_is_read_are_left() -> None:
    net = Net(dynamic=False)
    made = net(
        aten._embedding_bag_forward_only.default,
        net.parameter(6, 4),
        net.input(value=torch.tensor([0, 3, 5])),
        net.buffer(torch.tensor([0, 1])),
        False,
        1,
    )
    lifted = lift(net.program(net.item(made, 0), net.item(made, 2)))
    before = str(lifted.graph)
    apply_forms(lifted.graph)
    assert str(lifted.graph) == before


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)])
def test_cells(name: str, gates: int, biased: bool) -> None:
    def build(net: Net) -> fx.Node:
        x, states = net.input(5), [net.input(4) for _ in range(2 if name == "lstm" else 1)]
        stored = [net.parameter(gates * 4, 5), net.parameter(gates * 4, 4)]
        if biased:
            stored += [net.parameter(gates * 4), net.parameter(gates * 4)]
        target = getattr(aten, f"{name}_cell").default
        if name != "lstm":
            return net(target, x, states[0], *stored)
        both = net(target, x, states, *stored)
        return net(aten.cat.default, [net.item(both, 0), net.item(both, 1)], 1)

    same(build)


class Projected(nn.Module):
    """Everything that an LSTM answers, in one tensor."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 5, proj_size=2, **options)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.layer(x.transpose(0, 1) if not self.layer.batch_first else x)
        y = y if self.layer.batch_first else y.transpose(0, 1)
        return torch.cat([part.flatten(1) for part in (y, h.transpose(0, 1), c.transpose(0, 1))], 1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "bidirectional": True},
        pytest.param({"bias": False, "batch_first": True}, marks=pytest.mark.slow),
    ],
)
def test_an_lstm_with_a_projection_becomes_cells(options: dict[str, Any]) -> None:
    program = capture(Projected(**options).eval(), torch.randn(2, 3, 3)).to(torch.float64)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    expected = [program(x).detach()]
    torch.testing.assert_close(written(program, x), expected, rtol=1e-10, atol=1e-10)


def test_an_lstm_without_is_the_exporters() -> None:
    program = capture(nn.LSTM(3, 5, batch_first=True).eval(), torch.randn(2, 4, 3))
    lifted = lift(program)
    before = str(lifted.graph)
    apply_forms(lifted.graph)
    assert str(lifted.graph) == before


def test_a_projected_lstm_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_forms, "UNROLLED", 7)
    program = capture(Projected(batch_first=True, num_layers=2).eval(), torch.randn(2, 4, 3))
    with pytest.raises(LoweringError, match="8 cells, of at most 7") as caught:
        lower(program)
    assert "lstm" in (caught.value.node or "")
    assert "self.layer(" in (caught.value.source or "")


class Cells(nn.Module):
    """A cell, a ragged sum of table rows, and distances: whole files."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.bag = nn.GRUCell(3, 4), nn.EmbeddingBag(6, 4, mode="max", padding_idx=2)
        self.keys = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        h = self.cell(x, self.bag(ids))
        return torch.cat([torch.cdist(h, self.keys, p=1), torch.cdist(h, self.keys)], 1)


def test_the_file_runs_at_any_batch_and_keeps_names() -> None:
    model = Cells().eval()
    program = capture(model, (torch.randn(2, 3), IDS))
    lowered = lower(program)
    ids = torch.tensor([[2, 2, 2], [0, 1, 2], [5, 5, 1]])
    float_parity(program, lowered, [torch.randn(3, 3), ids])
    kept = {node.name for node in program.graph.nodes if node.op == "call_function"}
    assert {name for name in kept if "cell" in name or "cdist" in name} <= set(values(lowered))


def test_names_survive_the_whole_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """When another operator cannot be taken apart in place, all are traced again."""
    model = nn.Sequential(nn.Linear(3, 4), nn.AdaptiveAvgPool1d(1))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.cell = model, nn.LSTMCell(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x[:, 0])[0] + self.model(x).flatten(1)

    program = capture(Both().eval(), torch.randn(2, 4, 3))
    known = translatable() - {aten.mean.dim}
    monkeypatch.setattr(decompose_module, "translatable", lambda: known)
    lowered = lower(program)
    float_parity(program, lowered, [torch.randn(3, 4, 3)])
    (cell,) = [node for node in program.graph.nodes if node.target is aten.lstm_cell.default]
    (read,) = cell.users
    assert read.name in values(lowered)


def test_ragged_bags_run() -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(6, 4, mode="mean", padding_idx=1)

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return torch.tanh(self.bag(ids, offsets))

    inputs = (torch.tensor([0, 3, 1, 5, 1, 4]), torch.tensor([0, 2, 2, 5]))
    model = Ragged().eval()
    program = capture(model, inputs)
    float_parity(program, lower(program), program.flat_inputs(inputs, {}))


class PooledTokens(nn.Module):
    """Attention whose heads are joined by a view, and a pooling over positions: the end of a Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.size = 1

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return nn.functional.adaptive_avg_pool1d(attended.transpose(1, 2), self.size).flatten(1)


@pytest.mark.parametrize("size", [1, 2])
def test_positions_pooled_behind_an_attention(size: int) -> None:
    """To one position it is a mean; to more, the whole program is traced, and its views may copy."""
    net = PooledTokens().eval()
    net.size = size
    program = capture(net, torch.randn(2, 6, 8))
    float_parity(program, lower(program), [torch.randn(5, 6, 8)])


class Bags(nn.Module):
    """Bags of the sizes that people write."""

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size, self.table = size, nn.Parameter(torch.randn(9, 4))

    def forward(self, ids: Tensor) -> Tensor:
        if self.size is None:
            return F.embedding_bag(ids, self.table, mode="sum")
        starts = torch.arange(0, ids.numel(), self.size)
        return F.embedding_bag(ids, self.table, starts, mode="mean")


def test_bags_of_a_single_id_run_at_any_batch() -> None:
    """The step of `arange` is one, and a captured graph leaves it out."""
    program = capture(Bags(None).eval(), torch.randint(0, 9, (2, 1)))
    parity_at_sizes(program, lower(program))


@pytest.mark.parametrize("length", [8, 10])
def test_a_last_bag_may_be_shorter(length: int) -> None:
    model, ids = Bags(4).eval(), torch.randint(0, 9, (length,))
    program = capture(model, ids, dynamic_shapes={})
    file = lower(program)
    found = run(open_session(file), {program.signature.inputs[0]: ids.numpy()})
    np.testing.assert_allclose(next(iter(found.values())), model(ids).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("size", [7, 30])
def test_windows_over_the_whole_image_are_means(size: int) -> None:
    """EfficientNet of `transformers` pools 7 x 7 by 1280 x 1280: OpenVINO refuses such a file."""
    pool = nn.AvgPool2d(size, ceil_mode=True)
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Flatten()).eval(), torch.randn(2, 3, 7, 7))
    lowered = lower(program)
    assert "AveragePool" not in {node.op_type for node in lowered.graph.node}
    float_parity(program, lowered, [torch.randn(5, 3, 7, 7)])


def test_other_windows_stay() -> None:
    pool = nn.AvgPool2d(3, stride=2, padding=1)
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 1), pool).eval(), torch.randn(2, 3, 7, 7))
    assert "AveragePool" in {node.op_type for node in lower(program).graph.node}
