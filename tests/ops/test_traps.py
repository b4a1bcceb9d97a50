"""Where a plausible analysis would be silently wrong: chance agreement, sizes read as numbers, ties."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from fxcompress.analysis.groups import analyse
from fxcompress.ops.dimensions.table import RULES
from tests.ops.building import Net, aten
from tests.ops.proving import prove


def sizes(build: Callable[[Net], fx.Node], *, dynamic: bool = True) -> list[int]:
    """The group sizes of a network, proven at the example's batch and at another."""
    net = Net(dynamic=dynamic)
    return prove(net.program(build(net))).sizes


def test_a_reshape_that_fits_the_examples_batch_only() -> None:
    """`[2, 8] => [8, 2]` cuts the eight in four and two; a batch of three would cut elsewhere."""

    def build(net: Net) -> fx.Node:
        x = net(aten.view.default, net.features(width=8), [8, -1])
        return net(aten.mm.default, net(aten.t.default, net(aten.tanh.default, x)), net.parameter(8, 3))

    assert sizes(build) == []


def test_stored_rows_behind_a_batch_of_any_size() -> None:
    """`[B + K, C]`: a size that is not a multiple of the batch cannot be rescaled, so the rows stay."""

    def build(net: Net) -> fx.Node:
        x = net.features(width=6)
        joined = net(aten.cat.default, [x, net.parameter(4, 6)], 0)
        rows = net(operator.add, net.size(x, 0), 4)
        y = net(aten.view.default, net(aten.tanh.default, joined), [rows, 3, 2])
        return net(aten.mul.Tensor, net.input(3, 2), net(aten.mean.dim, y, [0]))

    found = sizes(build)
    assert 4 not in found


@pytest.mark.parametrize("target", [aten.div.Tensor, aten.mul.Tensor])
def test_a_size_that_is_used_as_a_number(target: object) -> None:
    """`x.sum(0) / len(x)` where the rows are batch times heads."""

    def build(net: Net) -> fx.Node:
        x = net(aten.view.default, net.features(width=12), [-1, 3])
        mean = net(target, net(aten.sum.dim_IntList, x, [0]), net.size(x, 0))
        return net(aten.mul.Tensor, net.input(3), mean)

    assert sizes(build) == []


def test_a_size_that_fills_a_tensor() -> None:
    def build(net: Net) -> fx.Node:
        x = net(aten.view.default, net.features(width=12), [-1, 3])
        rows = net.size(x, 0)
        y = net(aten.mul.Tensor, x, net(aten.full.default, [rows, 1], rows))
        return net.read(net(aten.view.default, y, [-1, 4, 3]))

    assert 4 not in sizes(build)


def test_positions_that_are_counted_up_to_a_size() -> None:
    def build(net: Net) -> fx.Node:
        x = net(aten.view.default, net.features(width=12), [-1, 3])
        ids = net(aten.remainder.Scalar, net(aten.arange.default, net.size(x, 0)), 5)
        y = net(aten.embedding.default, net.parameter(5, 3), ids)
        return net(aten.mul.Tensor, net.input(3), net(aten.mean.dim, net(aten.tanh.default, y), [0]))

    assert 4 not in sizes(build)


def test_a_number_of_elements() -> None:
    def build(net: Net) -> fx.Node:
        x = net(aten.tanh.default, net.features(width=6))
        count = net(aten.sym_numel.default, x)
        return net.read(net(aten.div.Tensor, x, count))

    assert sizes(build) == []


def test_sizes_by_every_arithmetic() -> None:
    """Floor, true division and maximum of a size that shrinks end in the right number."""

    def build(net: Net) -> fx.Node:
        x = net.features(5, width=12)
        batch = net.size(x, 0)
        folded = net(aten.permute.default, net(aten.reshape.default, x, [batch, 5, 4, 3]), [0, 2, 1, 3])
        folded = net(
            aten.reshape.default, net(aten.tanh.default, folded), [net(operator.mul, 4, batch), 5, 3]
        )
        rows = net.size(folded, 0)
        rows = net(torch.sym_max, net(operator.floordiv, net(operator.mul, rows, 6), 6), 1)
        y = net(aten.reshape.default, folded, [rows, 15])
        return net.read(net(aten.reshape.default, y, [batch, 4, 15]))

    assert sizes(build) == [3, 4]


def test_several_results_read_at_once() -> None:
    """A list of tensors handed on whole."""

    def build(net: Net) -> fx.Node:
        pieces = net(aten.chunk.default, net.features(width=6), 2, 1)
        return net.read(net(aten.cat.default, pieces, 1))

    assert sizes(build) == []


WITHOUT_RULE = {
    "kron": lambda net, x: net(aten.kron.default, x, net.buffer(torch.ones(1, 2))),
    "renorm": lambda net, x: net(aten.renorm.default, x, 2, 1, 1.0),
    "qr": lambda net, x: net.item(net(aten.linalg_qr.default, net(aten.t.default, x)), 1),
    "chain": lambda net, x: net(aten.linalg_multi_dot.default, [net.input(2), x, net.parameter(6, 2)]),
    "masked_scatter": lambda net, x: net(
        aten.masked_scatter.default, x, net(aten.gt.Scalar, x, 0), net.parameter(12)
    ),
    "strided": lambda net, x: net(aten.as_strided.default, x, [2, 3], [6, 2]),
    "bucketize": lambda net, x: net(aten.bucketize.Tensor, x, net.buffer(torch.tensor([-0.5, 0.0, 0.5]))),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_unknown_operators_freeze_what_they_touch(name: str) -> None:
    """Even those that would look element-wise by their shapes; the reason names them."""
    net = Net(dynamic=False)
    y = WITHOUT_RULE[name](net, net(aten.tanh.default, net.channels(6)))
    program = net.program(net(aten.sum.dim_IntList, y, list(range(len(net.shape(y))))))
    analysis = analyse(program)
    assert not [group for group in analysis.groups if group.size == 6]
    frozen = {item.axis: item for item in analysis.frozen}
    assert frozen["p0[0]"].reason.startswith("no rule for aten.")
    assert frozen["p0[0]"].operator in {node.name for node in program.graph.nodes}


@pytest.mark.parametrize("target", [aten.tanh.default, aten.sum.default])
def test_a_rule_that_fails_on_a_use_freezes_it(monkeypatch: pytest.MonkeyPatch, target: object) -> None:
    def fails(space: object, node: fx.Node) -> object:
        raise IndexError("a use nobody thought of")

    monkeypatch.setitem(RULES, target, fails)
    net = Net(dynamic=False)
    x = net(aten.tanh.default, net.channels(6))
    y = net(aten.mul.Tensor, net.read(x), net(aten.sum.default, x))
    frozen = {item.axis: item.reason for item in analyse(net.program(y)).frozen}
    assert frozen["p0[0]"] == f"the rule for {target} does not describe this use"


def test_groups_across_a_structure_that_does_not_align() -> None:
    """Blocks of three in groups of four: frozen, and the pruning of the outputs still works."""

    def build(net: Net) -> fx.Node:
        x = net(aten.repeat_interleave.self_int, net.channels(4, 5), 3, 1)
        weight = net.parameter(6, 6, 1)
        y = net(aten.conv1d.default, net(aten.tanh.default, x), weight, None, [1], [0], [1], 2)
        z = net(aten.pad.default, net(aten.tanh.default, y), [0, 0, 1, 5])
        z = net(aten.conv1d.default, z, net.parameter(8, 3, 1), net.parameter(8), [1], [0], [1], 4)
        return net.read(z)

    assert 2 in sizes(build, dynamic=False)


def test_one_weight_in_both_directions() -> None:
    """An autoencoder that decodes with the transposed weight of its encoder."""

    def build(net: Net) -> fx.Node:
        weight = net.parameter(6, 5)
        x = net(aten.tanh.default, net.features(width=5))
        code = net(aten.tanh.default, net(aten.linear.default, x, weight))
        return net.read(net(aten.linear.default, code, net(aten.t.default, weight)))

    assert sizes(build) == [5, 6]


def test_one_layer_called_twice() -> None:
    """Its output is its input: rows and columns go together."""

    def build(net: Net) -> fx.Node:
        weight, bias = net.parameter(6, 6), net.parameter(6)
        x = net.features(width=6)
        for _ in range(2):
            x = net(aten.tanh.default, net(aten.linear.default, x, weight, bias))
        return net.read(x)

    assert sizes(build) == [6]


def test_a_table_that_is_also_the_classifier() -> None:
    """Tied embedding and output: the rows are indexed, the width goes in both."""

    def build(net: Net) -> fx.Node:
        table = net.parameter(5, 6)
        ids = net.input(value=torch.tensor([[1, 4], [0, 2]]))
        x = net(aten.tanh.default, net(aten.embedding.default, table, ids))
        return net(aten.linear.default, x, table)

    assert sizes(build) == [6]


def test_a_square_added_to_its_transpose() -> None:
    """One axis twice in one product: `i` goes from the rows and from the columns."""

    def build(net: Net) -> fx.Node:
        x = net(aten.reshape.default, net.features(width=9), [-1, 3, 3])
        return net.read(net(aten.add.Tensor, x, net(aten.tanh.default, net(aten.transpose.int, x, 1, 2))))

    assert sizes(build) == [3]


def test_a_matrix_added_to_a_transpose_of_other_shape() -> None:
    """`[4, 6]` transposed beside `[6, 4]`: structures that do not align stay."""

    def build(net: Net) -> fx.Node:
        x = net.features(width=24)
        tall = net(aten.transpose.int, net(aten.reshape.default, x, [-1, 4, 6]), 1, 2)
        wide = net(aten.reshape.default, net(aten.tanh.default, x), [-1, 6, 4])
        return net.read(net(aten.add.Tensor, tall, wide))

    assert sizes(build) == []


def test_equal_sizes_of_unrelated_channels() -> None:
    """The features of one meet the rows of the other; the features of the other are not tied to them."""

    def build(net: Net) -> fx.Node:
        x, y = net.features(6, width=6), net.features(6, width=6)
        return net.read(
            net(aten.cat.default, [x, net(aten.transpose.int, net(aten.tanh.default, y), 1, 2)], 1)
        )

    assert sizes(build) == [6]
