"""Operators that read the order of positions, complex numbers, and layout under other names."""

from __future__ import annotations

import torch
from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

ORDER = Cases()
case = ORDER.case


@case(5)
def order_of_space(net: Net) -> fx.Node:
    """Rolled, flipped and summed along space: the channels are free."""
    x = net(aten.roll.default, net.channels(5, 6), [2], [2])
    x = net(aten.flip.default, net(aten.cumsum.default, x, -1), [2])
    x = net(aten.logcumsumexp.default, net(aten.tanh.default, x), 2)
    x = net(aten.add.Tensor, x, net.item(net(aten.cummax.default, net(aten.mul.Tensor, x, x), 2), 0))
    x = net(aten.sub.Tensor, x, net.item(net(aten.cummin.default, x, 2), 0))
    x = net(aten.add.Tensor, x, net(aten.mean.dim, net(aten.diff.default, x), [2], True))
    x = net(aten.mul.Tensor, x, net(aten.cumprod.default, net(aten.sigmoid.default, x), 2))
    ordered = net(aten.sort.default, net(aten.tanh.default, x))
    stable = net(aten.sort.stable, net.item(ordered, 0), stable=True, descending=True)
    best = net(aten.topk.default, net.item(stable, 0), 3, 2)
    ranks = net(aten.argsort.stable, net(aten.argsort.default, x, 2), stable=True, dim=2)
    ranks = net(aten.to.dtype, ranks, torch.float32)
    return net.read(net(aten.cat.default, [net.item(best, 0), net(aten.mul.Tensor, ranks, x)], 2))


@case()
def order_of_channels(net: Net) -> tuple[fx.Node, ...]:
    """Each of these reads the order of the channels, which therefore stay."""
    made = [net.channels(6, 2) for _ in range(8)]
    return (
        net.read(net(aten.diff.default, made[0], 1, 1)),
        net.read(net(aten.flip.default, made[1], [1])),
        net.read(net(aten.cumsum.default, made[2], 1)),
        net.read(net(aten.cumprod.default, made[3], -2)),
        net.read(net.item(net(aten.sort.default, made[4], 1), 0)),
        net.read(net.item(net(aten.topk.default, made[5], 3, 1), 0)),
        net.read(net(aten.argsort.default, made[6], 1)),
        net.read(net(aten.roll.default, made[7], [1])),
    )


@case(2, 3, 4)
def rolled_channels(net: Net) -> fx.Node:
    """The last three come first; a second tensor meets itself, and all of it is tied."""
    x = net(aten.roll.default, net(aten.tanh.default, net.channels(5, 2)), [3, 1], [1, -1])
    y = net(aten.tanh.default, net.channels(4, 2))
    y = net(aten.add.Tensor, y, net(aten.roll.default, y, [-1], [1]))
    z = net(aten.conv1d.default, x, net.parameter(4, 5, 1))
    return net.read(net(aten.cat.default, [z, net(aten.tanh.default, y)], 1))


@case(3)
def diagonals(net: Net) -> fx.Node:
    """Channels read as a square: rows go with columns, but not beside the main diagonal."""
    x = net(aten.view.default, net.features(width=9), [-1, 3, 3])
    y = net(aten.view.default, net.features(width=9), [-1, 3, 3])
    y = net.read(net(aten.diagonal.default, net(aten.tanh.default, y), 1, -2, -1))
    return net(aten.add.Tensor, y, net.read(net(aten.diagonal.default, net(aten.tanh.default, x), 0, 1, 2)))


@case(6)
def complex_numbers(net: Net) -> fx.Node:
    """Rotary by complex products: pairs stay, what is turned goes with the computed phases; a stored
    complex table is a constant.
    """
    x = net(aten.reshape.default, net.features(4, width=12), [2, 4, 6, 2])
    phases = net(aten.polar.default, net(aten.exp.default, net.parameter(4, 6)), net.parameter(4, 6))
    y = net(aten.mul.Tensor, net(aten.view_as_complex.default, x), phases)
    y = net(aten.resolve_conj.default, net(aten.conj.default, y))
    y = net(aten.resolve_neg.default, net(aten._conj.default, y))
    parts = net(aten.complex.default, net(aten.real.default, y), net(aten.imag.default, y))
    y = net(aten.reshape.default, net(aten.view_as_real.default, parts), [2, 4, 12])
    y = net(aten.reshape.default, net(aten.linear.default, y, net.parameter(6, 12)), [2, 4, 3, 2])
    y = net(aten.view_as_complex.default, y)
    y = net(aten.mul.Tensor, y, net.buffer(torch.polar(torch.ones(3), torch.arange(3.0))))
    return net.read(net(aten.view_as_real.default, y))


@case(6, dynamic=True)
def layout_under_other_names(net: Net) -> fx.Node:
    """What the training dialect keeps of NumPy's names."""
    x = net.features(4, width=6)
    x = net(aten.mul.Tensor, x, net.parameter(4, 1))
    x = net(aten.adjoint.default, net(aten.mT.default, net(aten.tanh.default, x)))
    x = net(aten.moveaxis.intlist, net(aten.mH.default, net(aten.moveaxis.int, x, 1, 2)), [1], [2])
    x = net(aten.atleast_3d.default, net(aten.atleast_2d.default, net(aten.atleast_1d.default, x)))
    return net.read(net(aten.tanh.default, x))


@case(4, 6)
def stacks_under_other_names(net: Net) -> fx.Node:
    """`hstack` lays channels end to end, `vstack` rows."""
    x, y = net(aten.tanh.default, net.channels(6)), net(aten.tanh.default, net.channels(6))
    wide = net(aten.mm.default, net(aten.hstack.default, [x, y]), net.parameter(12, 4))
    tall = net(aten.vstack.default, [x, net(aten.row_stack.default, [y, y])])
    tall = net(aten.mm.default, tall, net.parameter(6, 4))
    tall = net(aten.view.default, net(aten.tanh.default, tall), [2, 3, 4])
    return net.read(net(aten.add.Tensor, net(aten.sum.dim_IntList, tall, [1]), wide))


@case(4, 6)
def grids(net: Net) -> fx.Node:
    """Two vectors as the rows and columns of a grid, either way round."""
    a, b = net.parameter(4), net.parameter(6)
    one = net(aten.meshgrid.default, [a, b])
    two = net(aten.meshgrid.indexing, [b, a], indexing="xy")
    y = net(aten.add.Tensor, net.item(one, 0), net.item(two, 0))
    y = net(aten.mul.Tensor, y, net(aten.mul.Tensor, net.item(one, 1), net.item(two, 1)))
    y = net(aten.add.Tensor, y, net(aten.outer.default, a, net(aten.tanh.default, b)))
    y = net(aten.add.Tensor, y, net(aten.ger.default, a, b))
    y = net(aten.matmul.default, net(aten.ravel.default, y), net.parameter(24, 3))
    return net(aten.mul.Tensor, net.input(3), y)


@case(5, 6)
def order_statistics(net: Net) -> tuple[fx.Node, ...]:
    """Counted off along time, every channel for itself; along the channels, which then stay."""
    x, y = net.features(5, width=6), net.channels(5, 4)
    kept = net(aten.kthvalue.default, x, 2, 1, True)
    kept = net(aten.mul.Tensor, net.item(kept, 0), net(aten.to.dtype, net.item(kept, 1), torch.float32))
    several = net(aten.quantile.default, x, net.buffer(torch.tensor([0.2, 0.7])), 1)
    several = net(aten.permute.default, several, [1, 0, 2])
    one = net(aten.nanquantile.scalar, y, 0.4, 2, interpolation="nearest")
    wide = net(aten.nanquantile.default, net.channels(7), net.buffer(torch.tensor([0.5])), 1)
    return (
        net.read(kept),
        net.read(several),
        net.read(one),
        net.read(net(aten.unsqueeze.default, net.item(net(aten.kthvalue.default, net.channels(8), 3), 0), 1)),
        net.read(net(aten.quantile.scalar, net.channels(9), 0.5, 1, True)),
        net.read(net(aten.permute.default, wide, [1, 0])),
    )


@case(6, 4)
def squares_from_their_diagonals(net: Net) -> tuple[fx.Node, ...]:
    """Rows go with columns, wherever they are put, but not beside the main diagonal."""
    x, y = net.features(3, width=6), net.features(width=4)
    wide = net(aten.diag_embed.default, net(aten.tanh.default, x), 0, -1, 1)
    both = net(aten.add.Tensor, net(aten.diag_embed.default, y), net(aten.unsqueeze.default, y, 1))
    beside = net(aten.diag_embed.default, net.features(width=5), 1)
    return net.read(net(aten.tanh.default, wide)), net.read(both), net.read(beside)


@case(4)
def areas(net: Net) -> fx.Node:
    """Cross products: three components stay, the points they are taken at go."""
    x = net(aten.reshape.default, net.features(width=12), [2, 4, 3])
    y = net(aten.linalg_cross.default, net(aten.tanh.default, x), x, dim=2)
    z = net(aten.cross.default, y, net.parameter(1, 1, 3))
    return net.read(net(aten.cross.default, z, net(aten.sigmoid.default, x), -1))
