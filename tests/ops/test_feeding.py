"""Which activations contractions read, and along which dimension: switching a position off there is what
gates and moments speak of.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from fxcompress.ops.consumption import CONSUMED
from fxcompress.ops.cost import MACS
from fxcompress.ops.feeding import FED, Feed, fed
from tests.ops.building import Net, aten

UNREAD = {aten.tensordot.default}
"""Contractions without a row: groups that only they read are ranked by L2."""


def feeds(target: Any, *shapes: tuple[int, ...], stored: tuple[int, ...] = (), **kwargs: Any) -> list[Feed]:
    net = Net(dynamic=False)
    operands = [
        net.parameter(*shape) if place in stored else net.input(value=net.noise(*shape))
        for place, shape in enumerate(shapes)
    ]
    return _fed_by(net, net(target, *operands, **kwargs))


def _fed_by(net: Net, node: fx.Node) -> list[Feed]:
    """What one contraction reads, once the graph is a program."""
    return [feed for node in net.program(node).graph.nodes for feed in fed(node)]


@pytest.mark.parametrize(
    ("target", "shapes", "stored", "expected"),
    [
        (aten.linear.default, [(2, 5, 6), (4, 6)], (1,), [(2, 1)]),
        (aten.conv2d.default, [(2, 6, 5, 5), (4, 6, 3, 3)], (1,), [(1, 1)]),
        (aten.conv1d.default, [(6, 5), (4, 6, 3)], (1,), [(0, 1)]),
        (aten.conv_transpose2d.input, [(2, 6, 5, 5), (6, 4, 3, 3)], (1,), [(1, 0)]),
        (aten.mm.default, [(2, 6), (6, 4)], (1,), [(1, 0)]),
        (aten.mm.default, [(4, 6), (6, 2)], (0,), [(0, 1)]),
        (aten.bmm.default, [(2, 3, 6), (2, 6, 4)], (), [(2, 1), (1, 2)]),
        (aten.mv.default, [(4, 6), (6,)], (), [(1, 0), (0, 1)]),
        (aten.addmm.default, [(4,), (2, 6), (6, 4)], (0, 2), [(1, 0)]),
        (aten.scaled_dot_product_attention.default, [(2, 3, 5, 6)] * 3, (), [(3, 3), (3, 3)]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_summed_over(
    target: Any, shapes: list[tuple[int, ...]], stored: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    assert [(feed.dim, feed.other_dim) for feed in feeds(target, *shapes, stored=stored)] == expected


def test_letters_that_an_einsum_sums_over() -> None:
    net = Net(dynamic=False)
    x, weight = net.input(3, 5), net.parameter(3, 7)
    (feed,) = _fed_by(net, net(aten.einsum.default, "bij,ik->bjk", [x, weight]))
    assert feed.other is not None
    assert (feed.source.name, feed.dim, feed.other.target, feed.other_dim) == ("x0", 1, "p0", 0)


def test_every_contraction_has_a_row_or_is_named() -> None:
    assert set(FED) >= set(MACS) - UNREAD
    assert set(FED) >= set(CONSUMED) - UNREAD
    assert not set(FED) & UNREAD


def test_a_position_that_is_fed_zero_is_a_position_off() -> None:
    """Zero at one position along the dimension, and what it meets in the other operand does not matter."""
    x, weight = torch.randn(2, 5, 6), torch.randn(4, 6)
    (feed,) = feeds(aten.linear.default, (2, 5, 6), (4, 6), stored=(1,))
    x.select(feed.dim, 3).zero_()
    changed = weight.clone()
    changed.select(feed.other_dim, 3).fill_(9.0)
    assert torch.equal(aten.linear.default(x, weight), aten.linear.default(x, changed))
