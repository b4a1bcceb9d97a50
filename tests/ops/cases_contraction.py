"""Operators that multiply and sum, each between a producer and a consumer of prunable channels."""

from __future__ import annotations

from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

CONTRACTION = Cases()
case = CONTRACTION.case


@case(6, 5)
def linear_on_two_dimensions(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6))
    return net.read(net(aten.linear.default, x, net.parameter(5, 6), net.parameter(5)))


@case(6, 5)
def linear_on_three_dimensions(net: Net) -> fx.Node:
    x = net(aten.tanh.default, net.features(4, width=6))
    return net.read(net(aten.linear.default, x, net.parameter(5, 6)))


@case(6, 5)
def linear_on_four_dimensions(net: Net) -> fx.Node:
    x = net(aten.sigmoid.default, net.features(2, 3, width=6))
    return net.read(net(aten.linear.default, x, net.parameter(5, 6), net.parameter(5)))


@case(6)
def linear_with_one_output_row(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.features(4, width=6))
    return net.read(net(aten.linear.default, x, net.parameter(6)))


@case(6, 8)
def conv1d(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 7))
    return net.read(net(aten.conv1d.default, x, net.parameter(8, 6, 3), net.parameter(8), [2], [1]))


@case(6, 8)
def conv1d_same(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 7))
    return net.read(net(aten.conv1d.padding, x, net.parameter(8, 6, 3), None, [1], "same", [2]))


@case(6, 8)
def conv2d(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 4, 4))
    return net.read(net(aten.conv2d.default, x, net.parameter(8, 6, 3, 3), net.parameter(8), [1, 1], [1, 1]))


@case(6, 8)
def conv2d_same(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 4, 4))
    weight, bias = net.parameter(8, 6, 2, 2), net.parameter(8)
    return net.read(net(aten.conv2d.padding, x, weight, bias, [1, 1], "valid"))


@case(6, 8)
def conv3d(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 2, 3, 2))
    return net.read(net(aten.conv3d.default, x, net.parameter(8, 6, 2, 2, 2), net.parameter(8)))


@case(6, 8)
def conv3d_same(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 2, 3, 2))
    return net.read(net(aten.conv3d.padding, x, net.parameter(8, 6, 3, 3, 3), None, [1, 1, 1], "same"))


@case(8)
def convolution_without_a_batch(net: Net) -> fx.Node:
    """The input is `[C, L]`: its channels are dimension 0."""
    x = net.input(5)
    y = net(aten.conv1d.default, x, net.parameter(8, 2, 3), net.parameter(8))
    return net(aten.conv1d.default, net(aten.gelu.default, y), net.parameter(3, 8, 3))


@case(3, 4, 2)
def grouped_convolution(net: Net) -> fx.Node:
    """Groups, channels per group on the way in and on the way out."""
    x = net(aten.gelu.default, net.channels(12, 3, 3))
    weight, bias = net.parameter(6, 4, 3, 3), net.parameter(6)
    return net.read(net(aten.conv2d.default, x, weight, bias, [1, 1], [1, 1], [1, 1], 3))


@case(6)
def depthwise_convolution(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 5))
    return net.read(net(aten.conv1d.default, x, net.parameter(6, 1, 3), net.parameter(6), [1], [1], [1], 6))


@case(6, 2)
def depthwise_convolution_with_a_multiplier(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 5))
    return net.read(net(aten.conv1d.default, x, net.parameter(12, 1, 3), None, [1], [1], [1], 6))


@case(6, 5)
def conv_transpose1d(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 4))
    return net.read(net(aten.conv_transpose1d.default, x, net.parameter(6, 5, 3), net.parameter(5), [2]))


@case(6, 5)
def conv_transpose2d(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 3, 2))
    return net.read(net(aten.conv_transpose2d.input, x, net.parameter(6, 5, 2, 2), net.parameter(5), [2, 2]))


@case(2, 3, 5)
def grouped_conv_transpose2d(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 3, 2))
    weight, bias = net.parameter(6, 5, 2, 2), net.parameter(10)
    return net.read(net(aten.conv_transpose2d.input, x, weight, bias, [2, 2], [0, 0], [0, 0], 2))


@case(6, 5)
def conv_transpose3d(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 2, 2, 2))
    return net.read(net(aten.conv_transpose3d.input, x, net.parameter(6, 5, 2, 2, 2), None))


@case(6, 2, 4)
def core_convolution(net: Net) -> fx.Node:
    """The one operator of the core dialect, forward and transposed."""
    x = net(aten.gelu.default, net.channels(6, 4))
    args = [1], [1], [1], False, [0], 1
    y = net(aten.convolution.default, x, net.parameter(8, 6, 3), net.parameter(8), *args)
    args = [2], [0], [1], True, [0], 2
    y = net(aten.convolution.default, net(aten.tanh.default, y), net.parameter(8, 1, 2), None, *args)
    return net.read(y)


@case(3, 2, 2)
def core_convolution_transposed_in_groups(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 4))
    args = [2], [0], [1], True, [0], 2
    return net.read(net(aten.convolution.default, x, net.parameter(6, 2, 2), net.parameter(4), *args))


@case(6, 4)
def matmul_by_a_weight(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.features(5, width=6))
    return net.read(net(aten.matmul.default, x, net.parameter(6, 4)))


@case(6, 4)
def matmul_by_a_weight_on_the_left(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6, 5))
    return net.read(net(aten.matmul.default, net.parameter(4, 6), x))


@case(6)
def matmul_by_a_vector(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.features(5, width=6))
    return net.read(net(aten.matmul.default, x, net.parameter(6)))


@case(6)
def matmul_with_itself(net: Net) -> fx.Node:
    """X @ x: one node is both operands, and its two dimensions are tied."""
    x = net(aten.gelu.default, net.features(6, width=6))
    weight = net.parameter(6, 6)
    y = net(aten.matmul.default, weight, x)
    return net.read(net(aten.matmul.default, y, y))


@case(6)
def matmul_of_activations(net: Net) -> fx.Node:
    """The contracted dimension is a product nobody stores; heads broadcast."""
    q = net.features(4, width=6)
    k = net.features(5, width=6)
    return net.read(net(aten.matmul.default, q, net(aten.transpose.int, k, 1, 2)))


@case(6, 5)
def mm(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6))
    return net.read(net(aten.mm.default, x, net.parameter(6, 5)))


@case(6, 4)
def bmm(net: Net) -> fx.Node:
    x, y = net.features(5, width=6), net.channels(6, 7)
    weight = net(aten.expand.default, net.parameter(1, 7, 4), [2, 7, 4])
    z = net(aten.bmm.default, net(aten.gelu.default, x), net(aten.tanh.default, y))
    return net.read(net(aten.bmm.default, z, weight))


@case(6, 4)
def bmm_of_groups(net: Net) -> fx.Node:
    """The batched weight is stored: `[B, ..]` blocks with rows and columns of their own."""
    x = net(aten.gelu.default, net.features(5, width=6))
    return net.read(net(aten.bmm.default, x, net.parameter(2, 6, 4)))


@case(6)
def mv(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6))
    y = net(aten.mv.default, x, net.parameter(6))
    return net(aten.unsqueeze.default, y, 1)


@case(6)
def dot(net: Net) -> fx.Node:
    table = net(aten.gelu.default, net.parameter(6))
    scale = net(aten.dot.default, table, net.parameter(6))
    scale = net(aten.mul.Tensor, scale, net(aten.vdot.default, net.buffer(net.noise(6)), table))
    return net(aten.mul.Tensor, net.input(3), scale)


@case(6, 5)
def addmm(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.channels(6))
    y = net(aten.addmm.default, net.parameter(5), x, net.parameter(6, 5), beta=0.5, alpha=2.0)
    return net.read(net(aten.gelu.default, y))


@case(6, 4)
def baddbmm(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.features(5, width=6))
    y = net(aten.baddbmm.default, net.parameter(2, 1, 4), x, net.parameter(2, 6, 4))
    return net.read(y)


@case(6, 3, 2)
def einsum_by_a_weight(net: Net) -> fx.Node:
    x = net(aten.gelu.default, net.features(5, width=6))
    return net.read(net(aten.einsum.default, "btc, chd -> bhtd", [x, net.parameter(6, 3, 2)]))


@case(2, 3, 4)
def einsum_over_two_letters(net: Net) -> fx.Node:
    x = net(aten.linear.default, net.input(5, 4), net.parameter(6, 4))
    x = net(aten.reshape.default, net(aten.gelu.default, x), [2, 5, 3, 2])
    return net.read(net(aten.einsum.default, "bthd,hde->bte", [x, net.parameter(3, 2, 4)]))


@case(6, 5)
def einsum_with_a_summed_letter(net: Net) -> fx.Node:
    """C occurs in one operand and not in the result: it is summed there."""
    x = net(aten.gelu.default, net.features(5, width=6))
    return net.read(net(aten.einsum.default, "btc,e->bte", [x, net.parameter(5)]))


@case(4, 5, 6)
def einsum_with_an_ellipsis(net: Net) -> fx.Node:
    """`...c,cd->...d`, and one whose ellipses stand for different numbers of dimensions."""
    y = net(aten.linear.default, net.features(3, width=6), net.parameter(5, 6))
    y = net(aten.einsum.default, "...c,cd->...d", [net(aten.tanh.default, y), net.parameter(5, 4)])
    return net.read(net(aten.einsum.default, "...d,...d->...d", [y, net.parameter(3, 1)]))


@case(4, statistics=(4,))
def einsum_of_a_diagonal(net: Net) -> fx.Node:
    """An implicit outer product and its diagonal: both factors are one."""
    x, y = net(aten.tanh.default, net.channels(4)), net(aten.tanh.default, net.channels(4))
    outer = net(aten.einsum.default, "ab,ac", [x, y])
    trace = net(aten.einsum.default, "zii->z", [net(aten.einsum.default, "zb,zc->zbc", [x, y])])
    wide = net(aten.einsum.default, "bi,bj->bij", [x, y])
    diagonal = net(aten.einsum.default, "...ii->...i", [wide])
    y = net(aten.mul.Tensor, diagonal, net(aten.unsqueeze.default, trace, 1))
    return net.read(net(aten.add.Tensor, y, net(aten.mean.default, outer)))


@case(5, 6)
def tensordot(net: Net) -> fx.Node:
    """Two dimensions contracted in the order that is named."""
    x = net.features(4, width=6)
    x = net(aten.mul.Tensor, x, net.parameter(4, 1))
    y = net(aten.tensordot.default, net(aten.tanh.default, x), net.parameter(6, 5, 4), [1, -1], [2, 0])
    return net.read(net(aten.tanh.default, y))


@case(4, 5, 6)
def bilinear(net: Net) -> fx.Node:
    """Every pair of channels of two layers, with a bias and without."""
    x, y = net(aten.tanh.default, net.channels(4)), net(aten.tanh.default, net.channels(5))
    z = net(aten.bilinear.default, x, y, net.parameter(6, 4, 5), net.parameter(6))
    return net.read(net(aten.add.Tensor, z, net(aten.bilinear.default, x, y, net.parameter(6, 4, 5))))
