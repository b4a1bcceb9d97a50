"""Norms and reductions."""

from __future__ import annotations

import torch
from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

NORMALISATION = Cases()
case = NORMALISATION.case


def _statistics(net: Net, width: int) -> tuple[fx.Node, ...]:
    """Weight, bias, running mean and running variance of a batch norm."""
    mean, deviation = net.buffer(net.noise(width)), net.buffer(net.noise(width).abs() + 0.5)
    return net.parameter(width), net.parameter(width), mean, deviation


@case(6)
def batch_norm(net: Net) -> fx.Node:
    x = net.channels(6, 5)
    return net.read(net(aten.batch_norm.default, x, *_statistics(net, 6), False, 0.1, 1e-5, True))


@case(6)
def batch_norm_in_training(net: Net) -> fx.Node:
    """The statistics of the batch: per channel, over what stays."""
    x, (weight, bias, mean, deviation) = net.channels(6, 5), _statistics(net, 6)
    y = net(aten.batch_norm.default, x, weight, bias, mean, deviation, True, 0.1, 1e-5, True)
    return net.read(net(aten.tanh.default, y))


@case(5, 5, 6, statistics=(6,))
def batch_norm_over_features(net: Net) -> fx.Node:
    """Channels are dimension 1, and in training the features behind are averaged over."""
    x = net(aten.transpose.int, net.channels(5, 6), 1, 2)
    x = net(aten.linear.default, net(aten.tanh.default, x), net.parameter(5, 5), net.parameter(5))
    x = net(aten.linear.default, net(aten.transpose.int, x, 1, 2), net.parameter(6, 6))
    y = net(aten.batch_norm.default, x, None, None, None, None, True, 0.1, 1e-5, True)
    return net.read(net(aten.tanh.default, net(aten.transpose.int, y, 1, 2)))


@case(6, 6, 6)
def core_batch_norms(net: Net) -> fx.Node:
    made = []
    for target, mode in (
        (aten._native_batch_norm_legit_no_training.default, ()),
        (aten._batch_norm_no_update.default, ()),
        (aten.native_batch_norm.default, (False,)),
    ):
        x = net(aten.tanh.default, net.channels(6, 5))
        several = net(target, x, *_statistics(net, 6), *mode, 0.1, 1e-5)
        made.append(net.read(net.item(several, 0)))
    return net(aten.add.Tensor, net(aten.add.Tensor, made[0], made[1]), made[2])


@case(6)
def saved_statistics_of_a_batch_norm(net: Net) -> fx.Node:
    """In training the operator also gives mean and deviation, one per channel."""
    x = net.channels(6, 5)
    several = net(aten.native_batch_norm.default, x, *_statistics(net, 6), True, 0.1, 1e-5)
    mean = net(aten.unsqueeze.default, net.item(several, 1), -1)
    return net.read(net(aten.mul.Tensor, net.item(several, 0), mean))


@case(6)
def instance_norm(net: Net) -> fx.Node:
    x = net.channels(6, 5)
    y = net(
        aten.instance_norm.default, x, net.parameter(6), net.parameter(6), None, None, True, 0.1, 1e-5, True
    )
    return net.read(net(aten.tanh.default, y))


@case(5, 6, statistics=(5,))
def instance_norm_over_features(net: Net) -> fx.Node:
    x = net(aten.linear.default, net.channels(6, 4), net.parameter(5, 4), net.parameter(5))
    y = net(aten.instance_norm.default, x, None, None, None, None, True, 0.1, 1e-5, True)
    return net.read(net(aten.tanh.default, y))


@case(6, statistics=(6,))
def layer_norm(net: Net) -> fx.Node:
    x = net.features(3, width=6)
    y = net(aten.layer_norm.default, x, [6], net.parameter(6), net.parameter(6), 1e-5)
    return net.read(net(aten.tanh.default, y))


@case(4, 5, statistics=(4, 5))
def layer_norm_over_two_dimensions(net: Net) -> fx.Node:
    """Channels and features are normalised together, both prunable."""
    x = net(aten.linear.default, net.channels(4, 3), net.parameter(5, 3), net.parameter(5))
    y = net(aten.layer_norm.default, x, [4, 5], net.parameter(4, 5), net.parameter(4, 5), 1e-5)
    return net.read(net(aten.tanh.default, y))


@case(4, 5, statistics=(5,))
def norm_behind_channels(net: Net) -> fx.Node:
    """The normalised features shrink while the leading channels do as well."""
    x = net(aten.linear.default, net.channels(4, 3), net.parameter(5, 3), net.parameter(5))
    y = net(aten.layer_norm.default, x, [5], net.parameter(5), None, 1e-5)
    return net.read(net(aten.reciprocal.default, net(aten.add.Scalar, net(aten.sigmoid.default, y), 0.5)))


@case(4, 5, statistics=(5,))
def core_layer_norm(net: Net) -> fx.Node:
    """Mean and deviation per leading position are used as well."""
    x = net(aten.linear.default, net.channels(4, 3), net.parameter(5, 3), net.parameter(5))
    several = net(aten.native_layer_norm.default, x, [5], net.parameter(5), net.parameter(5), 1e-5)
    return net.read(net(aten.mul.Tensor, net.item(several, 0), net.item(several, 2)))


@case(6, statistics=(6,))
def rms_norm(net: Net) -> fx.Node:
    x = net.features(3, width=6)
    return net.read(net(aten.rms_norm.default, x, [6], net.parameter(6), 1e-5))


@case(3, 2, statistics=(2,))
def group_norm(net: Net) -> fx.Node:
    """Groups go whole, or a position in all of them."""
    x = net.channels(6, 5)
    y = net(aten.group_norm.default, x, 3, net.parameter(6), net.parameter(6))
    return net.read(net(aten.tanh.default, y))


@case(6, statistics=(6,))
def group_norm_of_one_group(net: Net) -> fx.Node:
    x = net.channels(6, 5)
    return net.read(net(aten.tanh.default, net(aten.group_norm.default, x, 1)))


@case(6)
def group_norm_of_single_channels(net: Net) -> fx.Node:
    x = net.channels(6, 5)
    return net.read(net(aten.tanh.default, net(aten.group_norm.default, x, 6, net.parameter(6))))


@case(3, 2, statistics=(2,))
def core_group_norm(net: Net) -> fx.Node:
    """The deviation per group is used as well."""
    x = net.channels(6, 5)
    args = net.parameter(6), net.parameter(6), 2, 6, 5, 3, 1e-5
    several = net(aten.native_group_norm.default, x, *args)
    deviation = net(aten.unsqueeze.default, net(aten.unsqueeze.default, net.item(several, 2), -1), -1)
    y = net(aten.unflatten.int, net.item(several, 0), 1, [3, 2])
    return net.read(net(aten.mul.Tensor, y, deviation))


@case(5, 5, 6, statistics=(5, 6))
def weight_norm(net: Net) -> fx.Node:
    """The norm of an output's weights is over the inputs that stay."""
    x = net(aten.tanh.default, net.channels(6))
    plain = net(aten._weight_norm.default, net.parameter(5, 6), net.parameter(5, 1))
    x = net(aten.linear.default, x, plain, net.parameter(5))
    core = net(aten._weight_norm_interface.default, net.parameter(5, 5), net.parameter(5, 1))
    return net.read(net(aten.linear.default, net(aten.tanh.default, x), net.item(core, 0)))


@case(6, statistics=(6,))
def largest_value_of_channels(net: Net) -> fx.Node:
    """Of value and position only the value is read."""
    x = net.channels(6, 5)
    gate = net.item(net(aten.max.dim, x, 1, True), 0)
    return net.read(net(aten.mul.Tensor, x, net(aten.sigmoid.default, gate)))


@case(6, statistics=(6,))
def softmax_over_channels(net: Net) -> fx.Node:
    x = net(aten.softmax.int, net.channels(6, 5), 1)
    return net.read(net(aten.mul.Tensor, x, 10.0))


@case(6)
def softmax_over_space(net: Net) -> fx.Node:
    x = net(aten.log_softmax.int, net(aten.softmax.int, net.channels(6, 5), -1), 2)
    return net.read(x)


@case(6, statistics=(6,))
def core_softmaxes(net: Net) -> fx.Node:
    x = net(aten._softmax.default, net.channels(6, 5), 1, False)
    x = net(aten._safe_softmax.default, net(aten.mul.Tensor, x, 10.0), 1)
    return net.read(net(aten._log_softmax.default, x, -2, False))


@case(6, statistics=(6,))
def log_softmax_whose_rows_are_divided(net: Net) -> fx.Node:
    """What is divided by a normalised axis must stay finite at the removed positions."""
    x = net(aten.softmax.int, net.channels(6, 5), 1)
    y = net(aten.rsqrt.default, net(aten.add.Scalar, net(aten.sum.dim_IntList, x, [2], True), 0.0))
    return net.read(net(aten.mul.Tensor, x, y))


@case(6)
def reductions_over_space(net: Net) -> fx.Node:
    """Channels pass by every reduction over another dimension, kept or not."""
    x = net(aten.sigmoid.default, net.channels(6, 3, 5))
    made = [
        net(aten.mean.dim, x, [2, 3]),
        net(aten.sum.dim_IntList, net(aten.mean.dim, x, [-1], True), [-1, -2]),
        net(aten.amax.default, x, [2, 3]),
        net(aten.amin.default, x, [-1, -2]),
        net(aten.var.dim, x, [2, 3]),
        net(aten.var.correction, x, [2, 3], correction=0),
        net(aten.std.dim, x, [2, 3]),
        net(aten.std.correction, x, [2, 3], correction=1),
        net.item(net(aten.var_mean.correction, x, [2, 3], correction=1), 1),
        net(aten.prod.dim_int, net(aten.prod.dim_int, x, 2), 2),
        net(aten.logsumexp.default, x, [2, 3]),
        net(aten.linalg_vector_norm.default, x, 2, [2, 3]),
        net(aten.norm.ScalarOpt_dim, x, 2, [2, 3]),
        net.item(net(aten.std_mean.dim, x, [2, 3]), 0),
        net.item(net(aten.std_mean.correction, x, [2, 3], correction=1), 0),
        net.item(net(aten.var_mean.dim, x, [2, 3]), 0),
        net(aten.nanmean.default, x, [2, 3]),
        net(aten.nansum.default, x, [2, 3]),
        net(aten.linalg_norm.default, net(aten.flatten.using_ints, x, 2), None, [2]),
        net(aten.count_nonzero.dim_IntList, net(aten.gt.Scalar, x, 0.5), [2, 3]),
        net.item(net(aten.aminmax.default, net(aten.flatten.using_ints, x, 2), dim=2), 0),
        net.item(net(aten.median.dim, net(aten.flatten.using_ints, x, 2), 2), 0),
        net.item(net(aten.nanmedian.dim, net(aten.flatten.using_ints, x, 2), 2), 0),
        net.item(net(aten.mode.default, net(aten.flatten.using_ints, x, 2), 2), 0),
        net.item(net(aten.max.dim, net(aten.flatten.using_ints, x, 2), 2), 0),
        net.item(net(aten.min.dim, net(aten.flatten.using_ints, x, 2), -1), 0),
        net(aten.argmax.default, net(aten.flatten.using_ints, x, 2), -1),
        net(aten.argmin.default, net(aten.flatten.using_ints, x, 2), 2),
        net(aten.any.dim, net(aten.flatten.using_ints, net(aten.gt.Scalar, x, 0.7), 2), 2),
        net(aten.all.dim, net(aten.flatten.using_ints, net(aten.gt.Scalar, x, 0.2), 2), 2),
    ]
    return net.read(net(aten.cat.default, [net(aten.to.dtype, y, torch.float32) for y in made], 1))


@case(6, statistics=(6,))
def reductions_over_channels(net: Net) -> fx.Node:
    """Tagged: a statistic over channels is that of the channels that stay."""
    x = net(aten.sigmoid.default, net.channels(6, 5))
    made = [
        net(aten.mean.dim, x, [1]),
        net(aten.sum.dim_IntList, x, [-2]),
        net(aten.amax.default, x, [1]),
        net(aten.var.correction, x, [1], correction=0),
        net(aten.linalg_vector_norm.default, x, 2, [1]),
        net(aten.logsumexp.default, x, [1]),
        net(aten.prod.dim_int, x, 1),
        net.item(net(aten.std_mean.correction, x, [1], correction=0), 0),
        net(aten.linalg_norm.default, x, None, [1]),
        net.item(net(aten.median.dim, x, 1), 0),
    ]
    return net.read(net(aten.stack.default, made, 1))


@case(6, statistics=(6,))
def reductions_of_everything(net: Net) -> fx.Node:
    x = net(aten.sigmoid.default, net.channels(6, 5))
    made = [
        net(aten.mean.default, x),
        net(aten.sum.default, x),
        net(aten.var.default, x),
        net(aten.std.default, x),
        net(aten.max.default, x),
        net(aten.min.default, x),
        net(aten.prod.default, x),
        net(aten.norm.Scalar, x),
        net(aten.to.dtype, net(aten.any.default, net(aten.gt.Scalar, x, 0.5)), torch.float32),
        net(aten.to.dtype, net(aten.all.default, net(aten.gt.Scalar, x, 0.1)), torch.float32),
    ]
    scales = net(aten.expand.default, net(aten.stack.default, made), [2, len(made)])
    return net(aten.add.Tensor, net.read(scales), net.read(x))


@case()
def answers_that_are_positions(net: Net) -> tuple[fx.Node, ...]:
    """The number of the best channel is an answer: the channels stay."""
    made = [net.channels(width, 5) for width in (4, 5, 6, 7)]
    return (
        net.read(net(aten.argmax.default, made[0], 1)),
        net.read(net.item(net(aten.max.dim, made[1], 1), 1)),
        net.read(net(aten.argmin.default, made[2], -2)),
        net.read(net.item(net(aten.min.dim, made[3], 1), 1)),
    )


@case(6, statistics=(6,))
def layer_norm_by_hand(net: Net) -> fx.Node:
    x = net.features(3, width=6)
    centred = net(aten.sub.Tensor, x, net(aten.mean.dim, x, [-1], True))
    spread = net(aten.mean.dim, net(aten.pow.Tensor_Scalar, centred, 2), [-1], True)
    y = net(aten.mul.Tensor, centred, net(aten.rsqrt.default, net(aten.add.Scalar, spread, 1e-5)))
    y = net(aten.add.Tensor, net(aten.mul.Tensor, y, net.parameter(6)), net.parameter(6))
    return net.read(y)


@case(6, statistics=(6,))
def a_sum_divided_by_the_width(net: Net) -> fx.Node:
    """The width is a number of the graph and stays: as if the removed channels were zero."""
    x = net.channels(6, 5)
    mean = net(aten.div.Tensor, net(aten.sum.dim_IntList, x, [1], True), 6)
    return net.read(net(aten.mul.Tensor, x, net(aten.sigmoid.default, mean)))


@case(6, statistics=(6,))
def attention_of_a_convolutional_block(net: Net) -> fx.Node:
    """CBAM's spatial gate: mean and maximum over the channels, joined and convolved."""
    x = net.channels(6, 5)
    pair = [net(aten.mean.dim, x, [1], True), net(aten.amax.default, x, [1], True)]
    gate = net(aten.conv1d.default, net(aten.cat.default, pair, 1), net.parameter(1, 2, 3), None, [1], [1])
    return net.read(net(aten.mul.Tensor, x, net(aten.sigmoid.default, gate)))
