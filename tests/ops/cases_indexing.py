"""Gathering, scattering, writing in part, windows, and distances."""

from __future__ import annotations

import torch
from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

INDEXING = Cases()
case = INDEXING.case


def numbers(net: Net, *values: int) -> fx.Node:
    return net.buffer(torch.tensor(values))


def spread(net: Net, ids: fx.Node, x: fx.Node) -> fx.Node:
    """Numbers `[N]` as `[B, N, C]` for a tensor `[B, T, C]`."""
    batch, _, width = net.shape(x)
    y = net(aten.unsqueeze.default, net(aten.unsqueeze.default, ids, 0), 2)
    return net(aten.expand.default, y, [batch, net.shape(ids)[0], width])


@case(6)
def gathered_rows(net: Net) -> fx.Node:
    """An index that is expanded over the channels follows them."""
    x = net.features(4, width=6)
    return net.read(net(aten.gather.default, x, 1, spread(net, numbers(net, 2, 0, 3), x)))


@case()
def gathered_channels(net: Net) -> fx.Node:
    x = net.channels(6)
    ids = net.buffer(torch.tensor([[0, 3, 1], [2, 2, 4]]))
    return net.read(net(aten.gather.default, x, 1, ids))


@case()
def gathered_in_part(net: Net) -> fx.Node:
    """The index is shorter than the tensor: only the first channels are read."""
    x = net.features(4, width=6)
    ids = net.buffer(torch.randint(4, (2, 3, 5), generator=torch.Generator().manual_seed(0)))
    return net.read(net(aten.gather.default, net(aten.tanh.default, x), 1, ids))


@case(6, 5)
def taken_along_rows(net: Net) -> tuple[fx.Node, ...]:
    """The other dimensions of the index are broadcast over the channels, or are theirs; without a dimension
    everything is one row.
    """
    x, y = net.features(4, width=6), net.features(4, width=5)
    ids = net.buffer(torch.tensor([2, 0, 3]).reshape(1, 3, 1))
    rows = net(aten.take_along_dim.default, net(aten.tanh.default, x), ids, 1)
    mine = net(aten.take_along_dim.default, y, net(aten.argsort.default, y, 1), -2)
    flat = net(aten.take_along_dim.default, net.channels(7), numbers(net, 3, 0, 5))
    channels = net(aten.take_along_dim.default, net.channels(8), net.buffer(torch.tensor([[0, 3, 1]])), 1)
    return net.read(rows), net.read(mine), net.read(net(aten.unsqueeze.default, flat, 1)), net.read(channels)


@case(6)
def scattered_rows(net: Net) -> fx.Node:
    """Added, written, reduced: to rows named by number."""
    x = net.features(4, width=6)
    ids = spread(net, numbers(net, 1, 0, 1, 2), x)
    y = net(aten.zeros.default, [2, 3, 6])
    y = net(aten.scatter_add.default, y, 1, ids, x)
    y = net(aten.scatter_reduce.two, y, 1, ids, x, "amax")
    once = spread(net, numbers(net, 2, 0, 1), x)
    part = net(aten.slice.Tensor, x, 1, 0, 3)
    y = net(aten.scatter.src, net(aten.tanh.default, y), 1, once, part)
    y = net(aten.scatter.reduce, y, 1, once, part, reduce="add")
    y = net(aten.scatter.value, y, 1, spread(net, numbers(net, 1), x), 0.5)
    return net.read(net(aten.scatter.value_reduce, y, 1, once, 1.5, reduce="multiply"))


@case()
def scattered_channels(net: Net) -> fx.Node:
    ids = net.buffer(torch.tensor([[0], [3]]))
    return net.read(net(aten.scatter.value, net.channels(6), 1, ids, 0.5))


@case(6)
def rows_by_number(net: Net) -> fx.Node:
    """`index_add` and its siblings."""
    x = net.features(3, width=6)
    ids = numbers(net, 1, 0, 2)
    y = net(aten.index_add.default, net(aten.zeros.default, [2, 4, 6]), 1, ids, x)
    y = net(aten.index_copy.default, net(aten.tanh.default, y), 1, numbers(net, 3, 1, 0), x)
    y = net(aten.index_fill.int_Scalar, y, 1, numbers(net, 2), 0.5)
    return net.read(net(aten.index_reduce.default, y, 1, ids, x, "amax"))


@case()
def channels_by_number(net: Net) -> fx.Node:
    return net.read(net(aten.index_fill.int_Scalar, net.channels(6), 1, numbers(net, 2, 4), 0.5))


@case(6)
def written_rows(net: Net) -> fx.Node:
    """`index_put` of a part, and of one value."""
    x = net.features(4, width=6)
    part = net(aten.slice.Tensor, x, 1, 0, 2)
    y = net(aten.index_put.default, net(aten.tanh.default, x), [None, numbers(net, 3, 1)], part)
    return net.read(
        net(aten.index_put.default, y, [None, numbers(net, 0)], net.buffer(torch.tensor(0.5)), True)
    )


@case()
def written_where_true(net: Net) -> fx.Node:
    x = net.channels(6)
    mask = net.buffer(torch.rand(2, 6, generator=torch.Generator().manual_seed(0)) > 0.5)
    return net.read(net(aten.index_put.default, x, [mask], net.buffer(torch.tensor(0.5))))


@case(6)
def one_row_written(net: Net) -> fx.Node:
    x = net.features(4, width=6)
    row = net(aten.select.int, x, 1, 2)
    return net.read(net(aten.select_scatter.default, net(aten.tanh.default, x), row, 1, -1))


@case(2, 3, dynamic=True)
def channels_written(net: Net) -> fx.Node:
    """`y[:, 1:4] = x`: a piece of a concatenation is another layer's channels; the whole is one as well."""
    x, y = net.channels(3, 5), net.channels(6, 5)
    y = net(aten.slice_scatter.default, net(aten.tanh.default, y), x, 1, 1, -2)
    whole = net(aten.tanh.default, y)
    return net.read(net(aten.slice_scatter.default, whole, net(aten.mul.Tensor, y, y), 1))


@case()
def channels_written_with_a_step(net: Net) -> fx.Node:
    y = net(aten.tanh.default, net.channels(6))
    return net.read(net(aten.slice_scatter.default, y, net.channels(3), 1, 0, 6, 2))


@case(6)
def summed_bags(net: Net) -> fx.Node:
    """Sums, means and largest entries of a table's rows."""
    table, ids, offsets = net.parameter(5, 6), numbers(net, 1, 4, 0, 2, 3), numbers(net, 0, 2)
    made = [
        net(aten.embedding_bag.default, table, ids, offsets),
        net(aten.embedding_bag.padding_idx, table, ids, offsets, False, 1, False, None, False, None),
        net(aten._embedding_bag.default, table, ids, offsets, False, 2),
        net(aten._embedding_bag_forward_only.default, table, ids, offsets),
    ]
    y = net(aten.cat.default, [net.item(found, 0) for found in made], 1)
    return net.read(net(aten.add.Tensor, y, net.input(1)))


@case(6)
def windows(net: Net) -> fx.Node:
    """`im2col` makes four rows of a channel; `unfold` looks at space twice."""
    x = net.channels(6, 4, 4)
    columns = net(aten.im2col.default, x, [2, 2], [1, 1], [0, 0], [2, 2])
    seen = net(aten.unfold.default, net(aten.unfold.default, x, 2, 2, 2), 3, 2, 2)
    seen = net(aten.reshape.default, net(aten.permute.default, seen, [0, 1, 4, 5, 2, 3]), [2, 24, 4])
    return net.read(net(aten.sub.Tensor, columns, net(aten.tanh.default, seen)))


@case(6)
def folded(net: Net) -> fx.Node:
    """`[B, C * 4, L] => [B, C, H, W]`"""
    x = net.channels(24, 4)
    return net.read(net(aten.col2im.default, x, [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]))


@case()
def windows_of_channels(net: Net) -> fx.Node:
    return net.read(net(aten.unfold.default, net.channels(6), 1, 2, 2))


@case(6)
def unpooled(net: Net) -> fx.Node:
    """Places from a pooling, in two and in three dimensions."""
    x2, x3 = net.channels(6, 4, 4), net.channels(6, 2, 2, 2)
    two = net(aten.max_pool2d_with_indices.default, x2, [2, 2])
    three = net(aten.max_pool3d_with_indices.default, x3, [2, 2, 2])
    y2 = net(aten.max_unpool2d.default, net.item(two, 0), net.item(two, 1), [4, 4])
    y3 = net(
        aten.max_unpool3d.default, net.item(three, 0), net.item(three, 1), [2, 2, 2], [2, 2, 2], [0, 0, 0]
    )
    return net.read(net(aten.cat.default, [net(aten.flatten.using_ints, y, 2) for y in (y2, y3)], 2))


@case(6)
def sampled(net: Net) -> fx.Node:
    """A picture and a volume, read where a computed grid says."""
    x2, x3 = net.channels(6, 4, 4), net.channels(6, 2, 3, 4)
    theta = net(aten.reshape.default, net.features(width=6), [2, 2, 3])
    grid = net(aten.affine_grid_generator.default, theta, [2, 6, 3, 3], False)
    volume = net(aten.tanh.default, net.input(2, 2, 2, 3))
    made = [
        net(aten.grid_sampler.default, x2, grid, 0, 0, False),
        net(aten.grid_sampler_2d.default, x2, grid, 0, 0, False),
        net(aten.grid_sampler_3d.default, x3, volume, 0, 0, False),
    ]
    return net.read(net(aten.cat.default, [net(aten.flatten.using_ints, y, 2) for y in made], 2))


@case(4, 6, statistics=(6,))
def distances(net: Net) -> fx.Node:
    """To stored prototypes: what is summed over is tagged, the prototypes can go."""
    x, keys = net.features(3, width=6), net.parameter(4, 6)
    return net.read(net(aten.tanh.default, net(aten.cdist.default, x, keys)))


@case(4, 6, statistics=(6,))
def distances_in_the_core_dialect(net: Net) -> fx.Node:
    x, keys = net.features(3, width=6), net.parameter(2, 4, 6)
    return net.read(net(aten._cdist_forward.default, x, keys, 2.0, None))


@case(4, 6, statistics=(6,))
def angles(net: Net) -> fx.Node:
    """`cosine_similarity` and `pairwise_distance` broadcast first."""
    x, keys = net(aten.unsqueeze.default, net.channels(6), 1), net.parameter(4, 6)
    cosine = net(aten.cosine_similarity.default, x, keys, -1)
    kept = net(aten.pairwise_distance.default, x, keys, 2.0, 1e-6, True)
    plain = net(aten.pairwise_distance.default, x, keys)
    y = net(aten.add.Tensor, cosine, plain)
    return net.read(net(aten.sub.Tensor, y, net(aten.squeeze.dim, kept, 2)))
