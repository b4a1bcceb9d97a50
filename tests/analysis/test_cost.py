"""Prices: against PyTorch's own counter, and against the program that a plan makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.analysis.cost import batch_size, cost
from fxcompress.analysis.groups import analyse
from fxcompress.graph.program import Program
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning import make_plan
from tests.architectures.programs import captured
from tests.ops.building import Net, aten


def counted(program: Program) -> float:
    """MACs per sample as PyTorch counts them while the program runs."""
    args, kwargs = program.example.args, program.example.kwargs
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program(*args, **kwargs)
    return counter.get_total_flops() / 2 / batch_size(program)


@pytest.mark.parametrize("name", ["vgg", "unet", "resnext", "mixer", "vit_softmax"])
def test_macs_are_what_the_operators_compute(name: str) -> None:
    program = captured(name)
    found = cost(program)
    assert found.macs == counted(program)
    assert found.params == sum(parameter.numel() for parameter in program.module.parameters())
    assert found.bytes == sum(tensor.nbytes for tensor in program.module.state_dict().values())


def test_matrix_products_of_every_form() -> None:
    net = Net(dynamic=False)
    x = net.features(4, width=6)
    y = net(aten.bmm.default, x, net.parameter(2, 6, 5))
    y = net(aten.baddbmm.default, net.parameter(5), y, net.parameter(2, 5, 5))
    y = net(aten.matmul.default, net.parameter(3, 4), y)
    program = net.program(net.read(y))
    assert cost(program).macs == counted(program)


def test_an_einsum_costs_the_product_of_its_letters() -> None:
    net = Net(dynamic=False)
    y = net(aten.einsum.default, "btc,chd->bhtd", [net.input(5, 4), net.parameter(4, 3, 2)])
    assert cost(net.program(y)).macs == 5 * 4 * 3 * 2


def test_a_tied_tensor_is_counted_once_and_buffers_only_in_bytes() -> None:
    net = Net(dynamic=False)
    weight = net.parameter(6, 6)
    x = net(aten.linear.default, net(aten.linear.default, net.input(6), weight), weight)
    found = cost(net.program(net(aten.mul.Tensor, x, net.buffer(torch.ones(6)))))
    assert (found.macs, found.params, found.bytes) == (72, 36, 4 * 42)


def test_every_width_is_priced_without_touching_the_graph() -> None:
    """Grouped convolutions and products included: the price of a plan is that of its program."""
    program = captured("resnext")
    analysis = analyse(program)
    generator = np.random.default_rng(0)
    for _ in range(2):
        channels = {
            group.name: tuple(sorted(generator.permutation(group.size)[: group.size // 2].tolist()))
            for group in analysis.groups
            if generator.random() < 0.5
        }
        plan = make_plan(analysis, channels)
        pruned = PruneChannels(plan).run(program).program
        assert cost(pruned) == plan.after
        assert plan.after.macs == counted(pruned)
