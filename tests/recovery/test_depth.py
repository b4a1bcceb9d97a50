"""Depth in one call: measured, chosen, removed and proven; the model stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.analysis.cost import cost
from fxcompress.errors import BudgetError, InputError, NotSupported
from fxcompress.graph.capture import capture
from fxcompress.plan.depth import Depth
from fxcompress.recovery.depth import shorten
from tests.passes.models import Apply
from tests.passes.residual import Stack
from tests.recovery.models import example, net, train


def test_the_block_that_does_nothing_goes() -> None:
    torch.manual_seed(0)
    model = Stack().eval()
    with torch.no_grad():
        model.b.down.weight.mul_(1e-3)
        model.b.down.bias.zero_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [torch.randn(4, 5) for _ in range(2)]
    for measure in ("output", "cosine"):
        result = shorten(model, batches[0], calibration=batches, depth=Depth(0.1, influence=measure))
        assert [result.plan.modules[name] for name in result.plan.removed] == ["b"]
        with torch.no_grad():
            assert torch.allclose(result.program(batches[0]), model(batches[0]), atol=1e-2)
        assert result.proof.response > 0
        assert cost(result.program).macs == result.plan.after.macs
    result.program.module.get_parameter("head.weight").data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_left_trains_and_loses_channels_too() -> None:
    result = shorten(net(8, 12), example(), calibration=[example()], depth=0.9)
    losses = train(result.program.train(), 10)
    assert losses[-1] < losses[0]
    pruned = fxcompress.prune_gradually(
        result.program.eval(),
        prune=fxcompress.Prune(0.3, block=1),
        schedule=fxcompress.Schedule("one-shot", 1),
    )
    assert cost(pruned.program).macs <= 0.7 * result.plan.after.macs


def test_refusals() -> None:
    program = capture(net(8, 12), example())
    with pytest.raises(InputError, match="training mode"):
        shorten(program.copy().train(), calibration=[example()])
    with pytest.raises(InputError, match="no batch"):
        shorten(program, calibration=[])
    with pytest.raises(BudgetError, match="hold"):
        shorten(program, calibration=[example()], depth=0.99)


def test_a_model_that_draws_is_refused() -> None:
    """Two runs of it differ: nothing about it could be proven."""
    noisy = Apply(lambda m, x: m.l(x) + m.l(torch.rand_like(x)), l=nn.Linear(4, 4)).eval()
    x = torch.randn(2, 4)
    with pytest.raises(NotSupported, match="draws random numbers"):
        shorten(noisy, x, calibration=[x])
