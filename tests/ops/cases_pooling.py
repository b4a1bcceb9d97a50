"""Pooling and resampling: space stays, channels pass."""

from __future__ import annotations

from torch import fx

from tests.ops.building import Net, aten
from tests.ops.cases import Cases

POOLING = Cases()
case = POOLING.case


@case(6)
def pools(net: Net) -> fx.Node:
    x1, x2, x3 = (net.channels(6, 6), net.channels(6, 6, 4), net.channels(6, 4, 4, 2))
    made = [
        net(aten.max_pool1d.default, x1, [2], [2]),
        net(aten.avg_pool1d.default, x1, [3], [2], [1], True),
        net(aten.adaptive_avg_pool1d.default, x1, [2]),
        net.item(net(aten.adaptive_max_pool1d.default, x1, [3]), 0),
        net.item(net(aten.max_pool1d_with_indices.default, x1, [2]), 0),
        net(aten.max_pool2d.default, x2, [3, 3], [2, 2], [1, 1], [1, 1], True),
        net(aten.avg_pool2d.default, x2, [2, 2]),
        net(aten.adaptive_avg_pool2d.default, x2, [3, 1]),
        net(aten._adaptive_avg_pool2d.default, x2, [1, 1]),
        net.item(net(aten.adaptive_max_pool2d.default, x2, [2, 2]), 0),
        net.item(net(aten.max_pool2d_with_indices.default, x2, [2, 2]), 0),
        net(aten.max_pool3d.default, x3, [2, 2, 2]),
        net(aten.avg_pool3d.default, x3, [2, 2, 1]),
        net(aten.adaptive_avg_pool3d.default, x3, [1, 2, 1]),
        net(aten._adaptive_avg_pool3d.default, x3, [1, 1, 1]),
        net.item(net(aten.adaptive_max_pool3d.default, x3, [2, 1, 1]), 0),
        net.item(net(aten.max_pool3d_with_indices.default, x3, [2, 2, 2]), 0),
    ]
    return net.read(net(aten.cat.default, [net(aten.flatten.using_ints, y, 2) for y in made], 2))


@case(6)
def pool_without_a_batch(net: Net) -> fx.Node:
    """`[C, L]`: the channels are dimension 0 and free."""
    x = net(aten.tanh.default, net(aten.conv1d.default, net.input(8), net.parameter(6, 2, 1)))
    x = net(aten.avg_pool1d.default, net(aten.max_pool1d.default, x, [2]), [2])
    x = net(aten.adaptive_avg_pool1d.default, x, [2])
    return net(aten.conv1d.default, x, net.parameter(3, 6, 1))


@case()
def pool_over_features(net: Net) -> fx.Node:
    """Pooled dimensions stay, features among them; the channels here are the input's."""
    x = net.features(4, width=6)
    return net(aten.max_pool1d.default, x, [2])


@case(6)
def resampling(net: Net) -> fx.Node:
    x1, x2, x3 = (net.channels(6, 3), net.channels(6, 2, 2), net.channels(6, 2, 2, 1))
    made = [
        net(aten.upsample_nearest1d.default, x1, [5]),
        net(aten.upsample_nearest1d.vec, x1, None, [2.0]),
        net(aten.upsample_linear1d.default, x1, [5], False),
        net(aten.upsample_linear1d.vec, x1, [4], True, None),
        net(aten.upsample_nearest2d.default, x2, [3, 4]),
        net(aten.upsample_nearest2d.vec, x2, None, [2.0, 2.0]),
        net(aten._upsample_nearest_exact2d.default, x2, [3, 3]),
        net(aten._upsample_nearest_exact2d.vec, x2, [3, 3], None),
        net(aten.upsample_bilinear2d.default, x2, [3, 3], True),
        net(aten.upsample_bilinear2d.vec, x2, None, False, [2.0, 1.0]),
        net(aten.upsample_bicubic2d.default, x2, [3, 3], True),
        net(aten.upsample_bicubic2d.vec, x2, [3, 3], True, None),
        net(aten._upsample_bilinear2d_aa.default, x2, [3, 3], True),
        net(aten._upsample_bicubic2d_aa.default, x2, [3, 3], True),
        net(aten.upsample_nearest3d.default, x3, [3, 2, 2]),
        net(aten.upsample_nearest3d.vec, x3, [3, 2, 2], None),
        net(aten.upsample_trilinear3d.default, x3, [3, 2, 2], False),
        net(aten.upsample_trilinear3d.vec, x3, [3, 2, 2], False, None),
    ]
    return net.read(net(aten.cat.default, [net(aten.flatten.using_ints, y, 2) for y in made], 2))
