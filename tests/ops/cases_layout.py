"""Operators that reorder, cut and join dimensions."""

from __future__ import annotations

import operator

import torch
from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

LAYOUT = Cases()
case = LAYOUT.case


@case(6, 2, dynamic=True)
def view_into_factors(net: Net) -> fx.Node:
    """The sizes follow, beside a symbolic batch and a symbolic size of another kind."""
    x = net.features(3, width=12)
    y = net(aten.view.default, x, [net.size(x, 0), 3, 6, 2])
    return net.read(net(aten.tanh.default, y))


@case(4, 3, dynamic=True)
def view_that_mixes_batch_and_heads(net: Net) -> fx.Node:
    """`[B, T, H * D] => [B * H, T, D]`, as `bmm` wants it, and back; batch times heads is one symbolic
    size.
    """
    x = net.features(5, width=12)
    batch = net.size(x, 0)
    y = net(aten.permute.default, net(aten.view.default, x, [batch, 5, 4, 3]), [0, 2, 1, 3])
    y = net(aten.clone.default, y, memory_format=torch.contiguous_format)
    folded = net(aten.view.default, y, [net(operator.mul, batch, 4), 5, 3])
    y = net(aten.view.default, net(aten.tanh.default, folded), [batch, 4, 5, 3])
    return net.read(y)


@case(12, dynamic=True)
def view_with_a_size_to_infer(net: Net) -> fx.Node:
    x = net.features(3, width=12)
    return net.read(net(aten._unsafe_view.default, net(aten.tanh.default, x), [-1, 36]))


@case(6, 2)
def reshape(net: Net) -> fx.Node:
    x = net.features(3, width=12)
    y = net(aten.reshape.default, x, [2, 3, 6, 2])
    y = net(aten.reshape.default, net(aten.transpose.int, y, 2, 3), [2, 3, 12])
    return net.read(net(aten.tanh.default, y))


@case(2, 2, 3)
def reshape_across_two_dimensions(net: Net) -> fx.Node:
    """`[B, 4, 3] => [B, 2, 6]`: the boundary cuts the four in two and two."""
    x = net.features(width=12)
    y = net(aten.reshape.default, x, [2, 4, 3])
    return net.read(net(aten.tanh.default, net(aten.reshape.default, y, [2, 2, 6])))


@case(6)
def flatten(net: Net) -> fx.Node:
    x = net(aten.tanh.default, net.channels(6, 2, 3))
    y = net(aten.flatten.using_ints, x, 1)
    return net(aten.linear.default, y, net.parameter(3, 36))


@case(4, 3)
def unflatten(net: Net) -> fx.Node:
    x = net(aten.unflatten.int, net.features(2, width=12), -1, [4, 3])
    return net.read(net(aten.tanh.default, x))


@case(4, 3)
def unflatten_in_the_middle(net: Net) -> fx.Node:
    x = net(aten.unflatten.int, net.channels(12, 5), 1, [4, -1])
    return net.read(net(aten.tanh.default, x))


@case(6)
def squeeze_and_unsqueeze(net: Net) -> fx.Node:
    """Down to one channel, a squeeze that had nothing to do must still do nothing."""
    x = net(aten.unsqueeze.default, net.channels(6, 5), -1)
    x = net(aten.squeeze.dim, net(aten.unsqueeze.default, x, 2), 1)
    x = net(aten.transpose.int, net(aten.squeeze.default, net(aten.tanh.default, x)), 1, 2)
    y = net(aten.squeeze.dims, net(aten.unsqueeze.default, x, 1), [2, 1])
    y = net(aten.transpose.int, net(aten.squeeze.dims, y, [1, -1]), 1, 2)
    return net.read(net(aten.tanh.default, y))


@case(6, 5)
def view_as(net: Net) -> fx.Node:
    """The model of the shape has channels of its own, which are tied to the result's."""
    x = net(aten.reshape.default, net.features(5, width=6), [2, 30])
    y = net(aten.view_as.default, x, net(aten.tanh.default, net.features(5, width=6)))
    return net.read(net(aten.linear.default, net(aten.reshape_as.default, y, y), net.parameter(5, 6)))


@case(6)
def permutations(net: Net) -> fx.Node:
    x = net(aten.permute.default, net.channels(6, 2, 3), [0, 2, -1, 1])
    x = net(aten.transpose.int, x, 1, -1)
    x = net(aten.movedim.int, net(aten.movedim.intlist, x, [1, 2], [3, 1]), -1, 1)
    x = net(aten.swapaxes.default, net(aten.swapdims.default, x, 1, 2), 2, 3)
    return net.read(net(aten.permute_copy.default, x, [0, 3, 2, 1]))


@case(4, 6)
def reversed_weight(net: Net) -> fx.Node:
    """`x @ w.T` as Falcon writes it."""
    x = net.features(width=6)
    y = net(aten.matmul.default, net(aten.tanh.default, x), net(aten.numpy_T.default, net.parameter(4, 6)))
    return net.read(y)


@case(6, 5)
def transposed_weight(net: Net) -> fx.Node:
    x = net(aten.tanh.default, net.channels(6))
    return net.read(net(aten.mm.default, x, net(aten.t.default, net.parameter(5, 6))))


@case(4, 5, 6)
def cat(net: Net) -> fx.Node:
    """Three producers end to end, one of them twice; a normal consumer and a norm behind."""
    a, b = net.channels(4, 3), net.channels(5, 3)
    x = net(aten.cat.default, [a, b, net(aten.tanh.default, a)], 1)
    return net.read(net(aten.conv1d.default, net(aten.tanh.default, x), net.parameter(6, 13, 1)))


@case(4, 5)
def cat_under_other_names(net: Net) -> fx.Node:
    a, b = net.channels(4, 3), net.channels(5, 3)
    x = net(aten.concat.default, [a, b], -2)
    return net.read(net(aten.concatenate.default, [x, x], 2))


@case(2, 3, 4)
def cats_that_meet(net: Net) -> fx.Node:
    """`cat(4, 5) + cat(6, 3)`: cut at every boundary, 4 + 2 + 3."""
    x = net(aten.cat.default, [net.channels(4, 3), net.channels(5, 3)], 1)
    y = net(aten.cat.default, [net.channels(6, 3), net.channels(3, 3)], 1)
    return net.read(net(aten.add.Tensor, x, net(aten.tanh.default, y)))


@case(6)
def stack(net: Net) -> fx.Node:
    x = net.channels(6, 3)
    return net.read(net(aten.stack.default, [x, net(aten.tanh.default, x)], 1))


@case(2, 4)
def split_in_equal_pieces(net: Net) -> fx.Node:
    """The last piece is smaller; the first two meet in a sum."""
    x = net.channels(10, 3)
    pieces = net(aten.split.Tensor, x, 4, 1)
    y = net(aten.add.Tensor, net.item(pieces, 0), net(aten.tanh.default, net.item(pieces, 1)))
    return net.read(net(aten.cat.default, [y, net.item(pieces, 2)], 1))


@case(1 + 2, 3, 4)
def split_with_sizes(net: Net) -> fx.Node:
    pieces = net(aten.split_with_sizes.default, net.features(2, width=10), [3, 4, 3], -1)
    y = net(aten.split.sizes, net(aten.tanh.default, net.item(pieces, 1)), [4], 2)
    parts = [net.item(pieces, 0), net.item(y, 0), net(aten.tanh.default, net.item(pieces, 2))]
    return net.read(net(aten.cat.default, parts, 2))


@case(4)
def chunk_into_a_gate(net: Net) -> fx.Node:
    pieces = net(aten.chunk.default, net.channels(8, 3), 2, 1)
    gate = net(aten.sigmoid.default, net.item(pieces, 1))
    return net.read(net(aten.mul.Tensor, net.item(pieces, 0), gate))


@case(2, 2, 3)
def tensor_split(net: Net) -> fx.Node:
    pieces = net(aten.tensor_split.sections, net.channels(7, 3), 3, 1)
    parts = [net(aten.tanh.default, net.item(pieces, place)) for place in range(3)]
    return net.read(net(aten.cat.default, parts, 1))


@case(2, 5)
def tensor_split_at_indices(net: Net) -> fx.Node:
    pieces = net(aten.tensor_split.indices, net.channels(7, 3), [2], 1)
    return net.read(net(aten.cat.default, [net.item(pieces, 1), net.item(pieces, 0)], 1))


@case(4, 3, 3, 2, 3)
def unsafe_splits(net: Net) -> tuple[fx.Node, ...]:
    """Pieces that may be written to; equal ones become unequal."""
    halves = net(aten.unsafe_chunk.default, net.channels(8, 3), 2, 1)
    equal = net(aten.unsafe_split.Tensor, net.features(4, width=6), 3, -1)
    sizes = net(aten.unsafe_split_with_sizes.default, net.channels(5, 2), [3, 2], 1)
    gate = net(aten.sigmoid.default, net.item(halves, 1))
    return (
        net.read(net(aten.mul.Tensor, net.item(halves, 0), gate)),
        net.read(net(aten.cat.default, [net.item(equal, 1), net.item(equal, 0)], 2)),
        net.read(net(aten.cat.default, [net.item(sizes, 1), net.item(sizes, 0)], 1)),
    )


@case(2, 2, 2, 3, 3, 4, 4, 2, 5, 2, 7, 2, 3)
def splits_by_the_name_of_a_dimension(net: Net) -> tuple[fx.Node, ...]:
    """The second dimension of what has several, the first, the third."""
    x, y = net.channels(6), net(aten.transpose.int, net.channels(6), 0, 1)
    wide = net(aten.hsplit.int, x, 3)
    tall = net(aten.vsplit.int, net(aten.tanh.default, y), 2)
    deep = net(aten.dsplit.int, net.features(3, width=8), 2)
    cut = net(aten.dsplit.array, net.features(3, width=7), [2])
    top = net(aten.vsplit.array, net(aten.transpose.int, net.channels(5), 0, 1), [3])
    left = net(aten.hsplit.array, net.channels(9, 2), [2])
    return (
        net.read(net(aten.cat.default, [net.item(wide, place) for place in (2, 0, 1)], 1)),
        net.read(
            net(aten.transpose.int, net(aten.cat.default, [net.item(tall, 1), net.item(tall, 0)]), 0, 1)
        ),
        net.read(net(aten.cat.default, [net.item(deep, 1), net.item(deep, 0)], 2)),
        net.read(net(aten.cat.default, [net.item(cut, 1), net.item(cut, 0)], 2)),
        net.read(net(aten.cat.default, [net.item(left, 1), net.item(left, 0)], 1)),
        net.read(net(aten.transpose.int, net(aten.cat.default, [net.item(top, 1), net.item(top, 0)]), 0, 1)),
    )


@case(5)
def unbind_in_the_middle(net: Net) -> fx.Node:
    """What is taken apart stays; the other dimension goes."""
    pieces = net(aten.unbind.int, net.features(3, width=5), 1)
    return net.read(net(aten.mul.Tensor, net.item(pieces, 0), net(aten.tanh.default, net.item(pieces, 2))))


@case(5)
def select(net: Net) -> fx.Node:
    x = net.features(3, width=5)
    return net.read(net(aten.tanh.default, net(aten.select.int, x, 1, -1)))


@case(3, 4)
def slices(net: Net) -> fx.Node:
    """`x[:, :3]` and `x[:, -4:]`, and a slice that takes everything."""
    x = net.channels(7, 3)
    first = net(aten.slice.Tensor, x, 1, 0, 3)
    last = net(aten.slice.Tensor, x, 1, -4, 9223372036854775807)
    y = net(aten.cat.default, [last, net(aten.tanh.default, first)], 1)
    return net.read(net(aten.slice.Tensor, y, -2))


@case(1 + 1, 3, 2)
def overlapping_slices(net: Net) -> fx.Node:
    x = net.channels(7, 3)
    first, last = net(aten.slice.Tensor, x, 1, 0, 5), net(aten.slice.Tensor, x, 1, 2)
    return net(aten.add.Tensor, net.read(first), net.read(net(aten.tanh.default, last)))


@case(4)
def every_other_position(net: Net) -> fx.Node:
    """Interleaved rotary: even and odd features of a pair go together."""
    x = net.features(3, width=8)
    even, odd = net(aten.slice.Tensor, x, 2, 0, 9223372036854775807, 2), net(aten.slice.Tensor, x, 2, 1, 8, 2)
    y = net(aten.stack.default, [net(aten.neg.default, odd), net(aten.tanh.default, even)], -1)
    return net.read(net(aten.flatten.using_ints, y, -2))


@case(2)
def a_step_that_does_not_divide(net: Net) -> fx.Node:
    x = net.channels(7, 3)
    y = net(aten.slice.Tensor, x, 1, 0, 7, 2)
    z = net(aten.linear.default, net.channels(2), net.parameter(4, 2))
    return net.read(net(aten.mul.Tensor, y, net(aten.unsqueeze.default, z, -1)))


@case(2, 4)
def narrow(net: Net) -> fx.Node:
    x = net.channels(6, 3)
    first, last = net(aten.narrow.default, x, 1, 0, 4), net(aten.narrow.default, x, -2, -2, 2)
    return net(aten.add.Tensor, net.read(first), net.read(net(aten.tanh.default, last)))


@case(2, 3, 5)
def zero_padded_channels(net: Net) -> fx.Node:
    """A parameter-free shortcut: padding that meets stored channels goes with them."""
    x = net(aten.pad.default, net.channels(5, 4), [0, 0, 2, 3])
    y = net.channels(10, 4)
    return net.read(net(aten.add.Tensor, x, net(aten.tanh.default, y)))


@case(5)
def constant_pad(net: Net) -> fx.Node:
    """Space is padded, cropped and reflected; channels are padded with ones that nothing stores."""
    x = net(aten.constant_pad_nd.default, net.channels(5, 6), [1, -2, 1, 0], 1.0)
    return net.read(net(aten.pad.default, net(aten.tanh.default, x), [1, 1], "reflect"))


@case(2)
def cropped_channels(net: Net) -> fx.Node:
    """A negative padding cuts: its channels stay."""
    x = net(aten.pad.default, net.channels(5, 4), [0, 0, -1, 0])
    return net.read(net(aten.conv1d.default, x, net.parameter(2, 4, 1)))


@case(6)
def repeat(net: Net) -> fx.Node:
    """Tiles of channels: every tile loses the same ones."""
    x = net(aten.repeat.default, net.channels(6, 2), [1, 3, 2])
    y = net(aten.tile.default, net(aten.tanh.default, x), [1, 2, 1])
    return net.read(y)


@case(6, 5)
def repeat_interleave(net: Net) -> fx.Node:
    """Keys of grouped queries: each channel several times in a row."""
    x = net(aten.repeat_interleave.self_int, net.channels(6, 2), 3, 1)
    return net.read(net(aten.conv1d.default, net(aten.tanh.default, x), net.parameter(5, 18, 1)))


@case(6, 5)
def repeat_interleave_to_a_given_size(net: Net) -> fx.Node:
    """The size of the result, given beforehand, follows (Mamba2)."""
    x = net(aten.repeat_interleave.self_int, net.channels(6, 2), 3, 1, output_size=18)
    return net.read(net(aten.conv1d.default, net(aten.tanh.default, x), net.parameter(5, 18, 1)))


@case(3, 2)
def pixel_shuffle(net: Net) -> fx.Node:
    """Blocks of four channels become pixels; the blocks go whole."""
    x = net(aten.pixel_shuffle.default, net.channels(12, 2, 2), 2)
    return net.read(net(aten.conv2d.default, net(aten.tanh.default, x), net.parameter(2, 3, 1, 1)))


@case(3, 2)
def pixel_unshuffle(net: Net) -> fx.Node:
    x = net(aten.pixel_unshuffle.default, net(aten.tanh.default, net.channels(3, 4, 2)), 2)
    return net.read(net(aten.conv2d.default, x, net.parameter(2, 12, 1, 1)))


@case(3, 2)
def channel_shuffle(net: Net) -> fx.Node:
    """Written out: `[B, G, I] => [B, I, G]`, between two grouped convolutions."""
    args = [1], [0], [1], 2
    x = net(aten.conv1d.default, net.input(2, 4), net.parameter(6, 1, 1), net.parameter(6), *args)
    x = net(aten.reshape.default, net(aten.tanh.default, x), [2, 2, 3, 4])
    x = net(aten.reshape.default, net(aten.transpose.int, x, 1, 2), [2, 6, 4])
    return net.read(net(aten.conv1d.default, x, net.parameter(2, 6, 1)))


@case(2, 3, 4)
def channel_shuffle_operators(net: Net) -> fx.Node:
    """A group goes, or a place in every group."""
    x = net(aten.channel_shuffle.default, net.channels(6, 4), 2)
    x = net(aten.native_channel_shuffle.default, net(aten.tanh.default, x), 3)
    return net.read(net(aten.conv1d.default, x, net.parameter(4, 6, 1)))


@case(6, 2, dynamic=True)
def repeat_by_the_batch(net: Net) -> fx.Node:
    """Per-channel weights for batch times channels, as instance norm is decomposed: the tiles stay whole."""
    x = net.channels(6, 5)
    batch = net.size(x, 0)
    weight = net(aten.repeat.default, net.parameter(6), [batch])
    folded = net(aten.view.default, x, [1, net(operator.mul, batch, 6), 5])
    args = weight, None, True, 0.0, 1e-5
    y = net.item(net(aten._native_batch_norm_legit.no_stats, folded, *args), 0)
    y = net(aten.view.default, net(aten.tanh.default, y), [batch, 6, 5])
    return net.read(net(aten.conv1d.default, y, net.parameter(2, 6, 1)))


@case(6, 5)
def filled(net: Net) -> fx.Node:
    """Constants of any size: they follow what they meet."""
    x = net.channels(6, 5)
    y = net(aten.add.Tensor, x, net(aten.full.default, [2, 6, 1], 0.5))
    y = net(aten.cat.default, [y, net(aten.zeros.default, [2, 6, 2])], 2)
    y = net(aten.add.Tensor, y, net(aten.ones.default, [6, 1]))
    y = net(aten.add.Tensor, y, net(aten.new_zeros.default, x, [2, 6, 1]))
    y = net(aten.mul.Tensor, y, net(aten.new_ones.default, x, [6, 7]))
    y = net(aten.mul.Tensor, y, net(aten.new_full.default, x, [6, 7], 0.25))
    y = net(aten.mul.Tensor, y, net(aten.scalar_tensor.default, 2.0))
    return net.read(net(aten.conv1d.default, net(aten.tanh.default, y), net.parameter(5, 6, 1)))


@case(6)
def counted(net: Net) -> fx.Node:
    """Positions that are counted stay: of space here, and of the channels in the other branch."""
    x = net.channels(6, 5)
    y = net(aten.mul.Tensor, x, net(aten.arange.default, 5, dtype=torch.float32))
    y = net(aten.add.Tensor, y, net(aten.arange.start_step, 0, 10, 2))
    y = net(aten.add.Tensor, y, net(aten.linspace.default, 0, 1, 5))
    y = net(aten.matmul.default, y, net(aten.eye.default, 5))
    y = net(aten.matmul.default, y, net(aten.eye.m, 5, 4))
    other = net(aten.mul.Tensor, net.channels(7), net(aten.arange.start, 1, 8))
    return net(aten.add.Tensor, net.read(y), net.read(other))
