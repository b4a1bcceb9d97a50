"""Operators that act position by position, attention, and table lookups."""

from __future__ import annotations

import torch
from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

ELEMENTWISE = Cases()
case = ELEMENTWISE.case


@case(6)
def broadcasting(net: Net) -> fx.Node:
    """Scalars, `[C, 1]`, `[1, C, 1]` and a missing batch: all go with the channels."""
    x = net.channels(6, 5)
    y = net(aten.add.Tensor, x, net.parameter(6, 1))
    y = net(aten.mul.Tensor, net.parameter(1, 6, 1), y)
    y = net(aten.sub.Tensor, y, net.parameter(5))
    y = net(aten.add.Tensor, y, net.parameter(1, 1, 1))
    y = net(aten.maximum.default, y, net.parameter())
    y = net(aten.lerp.Tensor, y, x, net.parameter(6, 5))
    y = net(aten.where.self, net(aten.gt.Tensor, y, x), y, net.parameter(6, 1))
    y = net(aten.where.ScalarOther, net(aten.gt.Scalar, y, -2.0), y, -2.0)
    y = net(aten.where.ScalarSelf, net(aten.gt.Scalar, y, 2.0), 2.0, y)
    return net.read(net(aten.addcmul.default, y, x, net.parameter(2, 1, 1), value=0.5))


@case(6, 5)
def outer_product_by_broadcasting(net: Net) -> fx.Node:
    """`[B, C, 1] * [B, 1, D]`: a dimension of one position is not the other one."""
    x = net(aten.unsqueeze.default, net.channels(6), 2)
    y = net(aten.unsqueeze.default, net.channels(5), 1)
    return net.read(net(aten.mul.Tensor, x, net(aten.tanh.default, y)))


@case(6)
def residual_of_three(net: Net) -> fx.Node:
    x = net.channels(6, 5)
    for _ in range(2):
        y = net(aten.conv1d.default, net(aten.tanh.default, x), net.parameter(6, 6, 1), net.parameter(6))
        x = net(aten.add.Tensor, x, y)
    return net.read(x)


@case(6)
def activations(net: Net) -> fx.Node:
    x = net.channels(6, 5)
    for target, *args in (
        (aten.relu.default,), (aten.add.Scalar, 0.1), (aten.silu.default,), (aten.gelu.default,),
        (aten.mish.default,), (aten.hardswish.default,), (aten.hardsigmoid.default,), (aten.hardtanh.default,),
        (aten.relu6.default,), (aten.leaky_relu.default,), (aten.elu.default,), (aten.selu.default,),
        (aten.celu.default,), (aten.softplus.default,), (aten.mul.Scalar, 3.0), (aten.softshrink.default,),
        (aten.hardshrink.default,), (aten.threshold.default, 0.1, 0.2), (aten.sigmoid.default,),
        (aten.tanh.default,), (aten.rsub.Scalar, 1.0), (aten.clamp.default, -1.0), (aten.clamp_min.default, 0.1),
        (aten.clamp_max.default, 0.9), (aten.log_sigmoid.default,), (aten.exp.default,),
        (aten.remainder.Scalar, 0.7),
    ):  # fmt: skip
        x = net(target, x, *args)
    x = net(aten.rsub.Tensor, x, net.parameter(6, 1))
    x = net(aten.clamp.Tensor, x, net.parameter(6, 1), None)
    x = net(aten.fake_quantize_per_tensor_affine.default, x, 0.01, 0, -128, 127)
    return net.read(net(aten.sub.Tensor, x, net(aten.floor_divide.default, x, 0.5)))


@case(6)
def masks(net: Net) -> fx.Node:
    """Comparisons of channels are masks of channels; flags of space stay out of it."""
    x = net.channels(6, 5)
    mask = net(aten.logical_and.default, net(aten.gt.Scalar, x, 0.0), net(aten.lt.Scalar, x, 0.8))
    mask = net(aten.logical_or.default, mask, net.buffer(torch.tensor([True, False, True, False, False])))
    mask = net(aten.bitwise_and.Tensor, mask, net(aten.bitwise_not.default, net(aten.eq.Scalar, x, 0.3)))
    mask = net(aten.bitwise_or.Tensor, net(aten.logical_not.default, mask), net(aten.gt.Scalar, x, 0.7))
    y = net(aten.masked_fill.Scalar, net(aten.mul.Scalar, x, 2.0), mask, 0.5)
    return net.read(net(aten.masked_fill.Tensor, y, net(aten.gt.Scalar, y, 1.0), net.parameter()))


@case()
def flags_of_channels(net: Net) -> fx.Node:
    """A stored mask of channels is a constant: it says which channels are which."""
    x = net.channels(4, 5)
    flags = net.buffer(torch.tensor([[True], [False], [True], [True]]))
    return net.read(net(aten.where.self, flags, x, net(aten.tanh.default, x)))


@case(6)
def float_buffers(net: Net) -> fx.Node:
    """A float constant is sliced like a parameter."""
    x = net.channels(6, 5)
    return net.read(net(aten.mul.Tensor, x, net.buffer(torch.linspace(0.1, 1, 6)[:, None])))


@case(6)
def passes_unchanged(net: Net) -> fx.Node:
    x = net.channels(6, 5)
    for target, *args in (
        (aten.dropout.default, 0.5, False), (aten.feature_dropout.default, 0.5, False),
        (aten.alpha_dropout.default, 0.5, False), (aten.feature_alpha_dropout.default, 0.5, False),
        (aten.clone.default,), (aten.contiguous.default,), (aten.detach.default,), (aten.alias.default,),
        (aten.lift_fresh_copy.default,), (aten.to.dtype, torch.float64), (aten._to_copy.default,),
        (aten.to.dtype_layout,), (aten.to.device, "cpu", torch.float32),
    ):  # fmt: skip
        x = net(target, x, *args)
    y = net(aten.to.other, x, net.parameter(1))
    y = net(aten.mul.Tensor, y, net(aten.add.Scalar, net(aten.ones_like.default, y), 0.5))
    y = net(aten.add.Tensor, y, net(aten.full_like.default, y, 0.25))
    y = net(aten.add.Tensor, y, net(aten.zeros_like.default, net(aten.type_as.default, y, x)))
    dropped = net(aten.native_dropout.default, net(aten.tanh.default, y), 0.5, False)
    return net.read(net.item(dropped, 0))


@case(4, 5, 6)
def expand(net: Net) -> fx.Node:
    """Learned queries for every sample: the batch of one is repeated; queries and channels go."""
    query = net(aten.expand.default, net.parameter(1, 4, 6), [2, -1, 6])
    x = net(aten.mul.Tensor, query, net(aten.unsqueeze.default, net.channels(6), 1))
    token = net(aten.broadcast_to.default, net.parameter(6), [2, 1, 6])
    x = net(aten.cat.default, [net(aten.expand_as.default, token, token), x], 1)
    return net.read(net(aten.linear.default, net(aten.tanh.default, x), net.parameter(5, 6)))


@case(3, 4, dynamic=True)
def repeated_keys(net: Net) -> fx.Node:
    """`[B, KV, 1, T] => [B, KV, R, T] => [B, KV * R, T]` beside queries of KV * R heads."""
    x = net.channels(3, 5)
    batch = net.size(x, 0)
    keys = net(aten.expand.default, net(aten.unsqueeze.default, x, 2), [batch, 3, 4, 5])
    keys = net(
        aten.view.default,
        net(aten.clone.default, keys, memory_format=torch.contiguous_format),
        [batch, 12, 5],
    )
    return net.read(net(aten.mul.Tensor, net.channels(12, 5), net(aten.tanh.default, keys)))


@case(4)
def glu(net: Net) -> fx.Node:
    return net.read(net(aten.glu.default, net.channels(8, 3), 1))


@case(6, 6)
def prelu(net: Net) -> fx.Node:
    x = net(aten.prelu.default, net.channels(6, 5), net.parameter(6))
    y = net(aten.conv1d.default, x, net.parameter(6, 6, 1))
    return net.read(net(aten.prelu.default, y, net.parameter(1)))


@case(4)
def triangles(net: Net) -> fx.Node:
    """Positions compared with each other stay; leading channels pass."""
    x = net(aten.reshape.default, net.channels(4, 9), [2, 4, 3, 3])
    y = net(aten.triu.default, net(aten.add.Scalar, net(aten.tril.default, x, 1), 1.0), -1)
    z = net(aten.tril.default, net.channels(5, 5))
    return net(aten.add.Tensor, net.read(net(aten.tanh.default, y)), net.read(z))


def _heads(net: Net, length: int, heads: int, width: int) -> fx.Node:
    x = net(aten.reshape.default, net.features(length, width=heads * width), [2, length, heads, width])
    return net(aten.transpose.int, x, 1, 2)


def _joined(net: Net, x: fx.Node, length: int) -> fx.Node:
    return net(aten.reshape.default, net(aten.transpose.int, x, 1, 2), [2, length, -1])


@case(4, 3, 2)
def attention(net: Net) -> fx.Node:
    """Heads are shared; query and key width is one group, value width another. The scale stays."""
    q, k, v = _heads(net, 5, 4, 3), _heads(net, 6, 4, 3), _heads(net, 6, 4, 2)
    y = net(aten.scaled_dot_product_attention.default, net(aten.mul.Scalar, q, 2.0), k, v)
    return net.read(_joined(net, y, 5))


@case(4, 3, 2)
def attention_with_a_mask(net: Net) -> fx.Node:
    """A bias per head goes with the heads; a stated scale is left alone."""
    q, k, v = _heads(net, 5, 4, 3), _heads(net, 6, 4, 3), _heads(net, 6, 4, 2)
    bias = net.parameter(1, 4, 5, 6)
    y = net(aten.scaled_dot_product_attention.default, q, k, v, bias, 0.0, False, scale=1.5)
    return net.read(_joined(net, y, 5))


@case(2, 3, 4, 5)
def attention_in_groups(net: Net) -> fx.Node:
    """Key-value heads, and how many query heads share one."""
    q, k, v = _heads(net, 6, 6, 4), _heads(net, 6, 2, 4), _heads(net, 6, 2, 5)
    y = net(aten.scaled_dot_product_attention.default, q, k, v, None, 0.0, True, scale=None, enable_gqa=True)
    return net.read(_joined(net, y, 6))


@case(3, 4)
def attention_of_learned_queries(net: Net) -> fx.Node:
    """Learned queries can go, unless a causal mask counts them."""
    k = net.features(6, width=4)
    made = []
    for causal in (False, True):
        q = net(aten.expand.default, net.parameter(1, 3, 4), [2, 3, 4])
        y = net(aten.scaled_dot_product_attention.default, q, k, k, None, 0.0, causal)
        made.append(net.read(y))
    return net(aten.add.Tensor, *made)


@case(6, 4)
def embedding(net: Net) -> fx.Node:
    ids = net.input(value=torch.tensor([[1, 3, 2], [0, 4, 4]]))
    x = net(aten.embedding.default, net.parameter(5, 6), ids)
    return net.read(net(aten.linear.default, net(aten.tanh.default, x), net.parameter(4, 6)))


@case(4, 6)
def index_tables(net: Net) -> fx.Node:
    """`table[ids]` keeps its rows; a bias table `[rows, heads]` gives `[T, T, heads]`."""
    places = net.buffer(torch.tensor([[0, 1, 2], [3, 0, 1], [4, 3, 0]]))
    bias = net(aten.index.Tensor, net.parameter(5, 4), [places])
    x = net(aten.reshape.default, net.channels(4, 9), [2, 4, 3, 3])
    x = net(aten.add.Tensor, x, net(aten.permute.default, bias, [2, 0, 1]))
    y = net(aten.index.Tensor, net.channels(6, 5), [None, None, net.buffer(torch.tensor([4, 0]))])
    z = net(aten.index_select.default, net(aten.tanh.default, y), 2, net.buffer(torch.tensor([1, 1, 0])))
    return net(aten.add.Tensor, net.read(x), net.read(z))


@case()
def indexing_that_moves_dimensions(net: Net) -> fx.Node:
    """Indices apart from each other put their result first; flags give a size that data decides."""
    x = net(aten.reshape.default, net.channels(4, 6), [2, 4, 3, 2])
    ids = net.buffer(torch.tensor([0, 1]))
    return net(
        aten.unsqueeze.default, net(aten.flatten.using_ints, net(aten.index.Tensor, x, [ids, None, ids])), 0
    )


@case()
def index_of_channels(net: Net) -> tuple[fx.Node, ...]:
    """Channels that are addressed by number stay."""
    order = net.buffer(torch.tensor([3, 1, 0, 2]))
    return (
        net.read(net(aten.index.Tensor, net.channels(4, 5), [None, order])),
        net.read(net(aten.index_select.default, net.channels(4, 5), 1, order)),
    )


@case(3, 5)
def one_hot_of_channels(net: Net) -> fx.Node:
    """Classes are counted positions; the table they multiply keeps its rows."""
    ids = net.input(value=torch.tensor([1, 0]))
    x = net(aten.to.dtype, net(aten.one_hot.default, ids, 4), torch.float32)
    x = net(aten.linear.default, x, net.parameter(3, 4))
    return net.read(net(aten.linear.default, net(aten.tanh.default, x), net.parameter(5, 3)))


@case(6)
def elementwise_under_other_names(net: Net) -> fx.Node:
    """Names that the training dialect keeps beside the usual ones."""
    x = net.channels(6, 5)
    for target, *args in (
        (aten.divide.Scalar, 2.0), (aten.multiply.Scalar, 0.9), (aten.negative.default,), (aten.absolute.default,),
        (aten.arctan.default,), (aten.arcsin.default,), (aten.arcsinh.default,), (aten.special_expit.default,),
        (aten.arccos.default,), (aten.fix.default,),
    ):  # fmt: skip
        x = net(aten.add.Tensor, net(target, net(aten.tanh.default, x), *args), x)
    y = net(aten.multiply.Tensor, net.parameter(6, 1), x)
    y = net(aten.subtract.Tensor, net(aten.divide.Tensor, y, net(aten.exp.default, net.parameter(6, 1))), x)
    y = net(
        aten.add.Tensor, y, net(aten.arctanh.default, net(aten.mul.Scalar, net(aten.tanh.default, y), 0.5))
    )
    y = net(
        aten.add.Tensor, y, net(aten.arccosh.default, net(aten.add.Scalar, net(aten.mul.Tensor, y, y), 1.5))
    )
    return net.read(net(aten.arctan2.default, y, x))


@case(6)
def comparisons_under_other_names(net: Net) -> fx.Node:
    x, y = net.channels(6, 5), net.parameter(6, 1)
    made = [
        net(target, x, y)
        for target in (
            aten.greater.Tensor, aten.greater_equal.Tensor, aten.less.Tensor, aten.less_equal.Tensor,
            aten.not_equal.Tensor, aten.isclose.default,
        )
    ] + [
        net(target, x, 0.3)
        for target in (
            aten.greater.Scalar, aten.greater_equal.Scalar, aten.less.Scalar, aten.less_equal.Scalar,
            aten.not_equal.Scalar,
        )
    ]  # fmt: skip
    for mask in made:
        x = net(aten.where.ScalarOther, mask, net(aten.add.Scalar, x, 0.1), 0.2)
        x = net(aten.where.ScalarSelf, net(aten.logical_not.default, mask), 0.4, x)
    first = net(aten.broadcast_tensors.default, [x, net.parameter(6, 1)])
    y = net(aten.add.Tensor, net.item(first, 0), net.item(first, 1))
    for target in (aten.empty_like, aten.rand_like, aten.randn_like):
        y = net(aten.where.self, net(aten.gt.Scalar, y, -1e9), y, net(target.default, y))
    return net.read(y)
