"""Masks that hold while a model trains."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fxcompress.analysis.density import densities
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.apply_masks import ApplyMasks
from fxcompress.plan.masking import plan_sparsity
from fxcompress.plan.schedule import Schedule
from fxcompress.plan.sparsity import Sparsify
from fxcompress.recovery.masks import MaskHook, sparsify_gradually
from tests.passes.models import Chain


def model() -> nn.Module:
    torch.manual_seed(0)
    return Chain(a=nn.Linear(8, 16), n=nn.BatchNorm1d(16), r=nn.ReLU(), b=nn.Linear(16, 4)).eval()


def trained(program: Program, hook: MaskHook, steps: int = 5) -> None:
    """Some steps of SGD with momentum towards random targets."""
    optimizer = torch.optim.SGD(program.module.parameters(), 0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(32, 8, generator=generator), torch.randn(32, 4, generator=generator)
        optimizer.zero_grad()
        (program(x) - y).square().mean().backward()
        optimizer.step()
        hook.apply(program.module)


@pytest.mark.parametrize("own", [True, False], ids=["own module", "program"])
def test_zeros_stay_zero_in_training(own: bool) -> None:
    net = model()
    program = capture(net, torch.randn(2, 8))
    plan = plan_sparsity(program, Sparsify(0.5))
    module = net if own else ApplyMasks(plan).run(program).program.copy(share=False).module
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    handle = MaskHook(plan).attach(optimizer, module)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    for name, mask in plan.masks.items():
        weight = module.get_parameter(name)
        assert not bool(weight[~mask].any())
        assert not torch.equal(weight[mask], before[name][mask])
    handle.remove()
    module(torch.randn(16, 8)).square().mean().backward()
    optimizer.step()
    assert any(bool(module.get_parameter(name)[~mask].any()) for name, mask in plan.masks.items())


@pytest.mark.parametrize("kind", ["one-shot", "linear", "cubic", "exponential"])
def test_gradual_masks_follow_the_schedule_under_training(kind: str) -> None:
    schedule = Schedule(kind, 4)
    seen: list[float] = []

    def train(program: Program, hook: MaskHook) -> None:
        assert program.training
        counted = {item.name: item for item in densities(program)}
        size = sum(counted[name].size for name in hook.plan.masks)
        seen.append(1 - sum(counted[name].nonzero for name in hook.plan.masks) / size)
        trained(program, hook)

    result = sparsify_gradually(
        model(), torch.randn(2, 8), sparsify=Sparsify(0.8), schedule=schedule, train=train
    )
    wanted = [schedule.removed(step, 0.8) for step in range(1, 5)]
    assert result.history == pytest.approx(wanted, abs=1 / 192)
    assert seen == pytest.approx(wanted, abs=1 / 192)
    assert not result.program.training
    assert all(
        not bool(result.program.module.get_parameter(n)[~m].any()) for n, m in result.plan.masks.items()
    )


def test_patterns_get_denser_zeros_step_by_step() -> None:
    result = sparsify_gradually(
        model(),
        torch.randn(2, 8),
        sparsify=Sparsify(pattern="1:4"),
        schedule=Schedule("linear", 3),
        train=trained,
    )
    assert result.history == pytest.approx([0.25, 0.5, 0.75])
    assert all(a < b for a, b in pairwise(result.history))


def test_the_model_given_stays_as_it_is() -> None:
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    sparsify_gradually(net, torch.randn(2, 8), sparsify=Sparsify(0.5), train=trained)
    program = capture(net, torch.randn(2, 8))
    sparsify_gradually(program, sparsify=Sparsify(0.5), train=trained)
    for state in (net.state_dict(), program.module.state_dict()):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items() if name in state)


def test_another_module_is_refused() -> None:
    plan = plan_sparsity(capture(model(), torch.randn(2, 8)), Sparsify(0.5))
    with pytest.raises(InputError, match=r"a\.weight"):
        MaskHook(plan).apply(nn.Linear(8, 16))
    with pytest.raises(InputError, match="shape"):
        MaskHook(plan).apply(Chain(a=nn.Linear(8, 8), b=nn.Linear(16, 4)))
