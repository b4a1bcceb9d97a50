"""Prices: against PyTorch's own counter, and against the program that a plan makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.analysis.cost import cost, samples_of, unpriced
from fxcompress.analysis.groups import analyse
from fxcompress.analysis.propagate import propagate
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.pruning_plan import make_plan
from tests.architectures.programs import captured
from tests.ops.building import Net, aten


def counted(program: Program) -> float:
    """MACs per sample as PyTorch counts them while the program runs."""
    args, kwargs = program.example.args, program.example.kwargs
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        program(*args, **kwargs)
    return counter.get_total_flops() / 2 / samples_of(program, propagate(program))


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


class Recurrent(nn.Module):
    """A GRU over a sequence, and its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def test_recurrent_layers_are_priced_although_they_are_frozen() -> None:
    gates = 3 * 32
    first, second = 2 * gates * (8 + 32), 2 * gates * (64 + 32)
    assert cost(capture(Recurrent().eval(), torch.randn(2, 10, 8))).macs == 10 * (first + second) + 64 * 4


class Contractions(nn.Module):
    """Contractions that are seldom written: an ellipsis, a tensordot, a bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(6, 5))
        self.form = nn.Bilinear(5, 5, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("...i,ij->...j", x, self.mix)
        return torch.tensordot(self.form(y, y), self.mix[:, :5].new_ones(7, 3), dims=([2], [0]))


def test_contractions_that_are_seldom_written_are_priced() -> None:
    found = cost(capture(Contractions().eval(), torch.randn(2, 4, 6))).macs
    assert found == 4 * 6 * 5 + 4 * 7 * 5 * 5 + 4 * 7 * 3


def test_an_image_without_a_batch_is_one_sample() -> None:
    conv = nn.Conv2d(3, 4, 3).eval()
    assert cost(capture(conv, torch.randn(3, 10, 10))).macs == 4 * 8 * 8 * 27


def test_a_static_batch_counts_samples_while_it_reaches_the_output() -> None:
    exported = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.randn(5, 3, 10, 10),))
    assert cost(capture(exported)).macs == 4 * 8 * 8 * 27


def test_an_operator_of_unknown_work_is_named() -> None:
    program = capture(SolverHead().eval(), torch.randn(2, 4, 4))
    assert [node.target for node in unpriced(program)] == [torch.ops.aten.linalg_pinv.atol_rtol_tensor]


class SolverHead(nn.Module):
    """An operator with neither a dimension rule nor a price."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.pinv(x)
