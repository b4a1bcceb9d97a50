"""L2 saliency, gathered over all members of a group."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.analysis.saliency import score
from fxcompress.numerics.saliency import Saliency
from tests.ops.building import Net, aten


def l2_of(analysis: Analysis) -> dict[str, np.ndarray]:
    return score(analysis, Saliency("l2"))


def test_all_weights_of_an_index_count() -> None:
    """Rows, bias, columns; of a product only the positions that go with the index."""
    net = Net(dynamic=False)
    x = net(aten.reshape.default, net.features(width=6), [2, 2, 3])
    x = net(aten.reshape.default, net(aten.tanh.default, x), [2, 6])
    program = net.program(net(aten.linear.default, x, net.parameter(4, 6)))
    weights = {name: tensor.detach().double().numpy() for name, tensor in program.module.named_parameters()}
    expected = (weights["p0"] ** 2).sum(1) + weights["p1"] ** 2 + (weights["p2"] ** 2).sum(0)
    scores = l2_of(analyse(program))
    for name, rows in (
        ("p0[0]:0", expected.reshape(2, 3).sum(1)),
        ("p0[0]:1", expected.reshape(2, 3).sum(0)),
    ):
        norms = np.sqrt(rows)
        assert np.allclose(scores[name], norms / norms.mean(), rtol=1e-12)


def test_running_statistics_do_not_count() -> None:
    def scores(mean: float) -> np.ndarray:
        net = Net(dynamic=False)
        buffers = [net.buffer(torch.full((6,), mean)), net.buffer(torch.ones(6))]
        args = net.parameter(6), net.parameter(6), *buffers, False, 0.1, 1e-5, True
        y = net(aten.batch_norm.default, net.channels(6, 4), *args)
        (found,) = l2_of(analyse(net.program(net.read(y)))).values()
        return found

    assert np.array_equal(scores(0.0), scores(100.0))


def test_low_precision_weights_are_ranked_in_double() -> None:
    net = Net(dynamic=False)
    program = net.program(net.read(net.channels(4)))
    for name, parameter in program.module.named_parameters():
        setattr(program.module, name, nn.Parameter((torch.ones_like(parameter) * 1e-3).to(torch.bfloat16)))
    (scores,) = l2_of(analyse(program)).values()
    assert scores.dtype == np.float64
    assert np.allclose(scores, 1.0)
