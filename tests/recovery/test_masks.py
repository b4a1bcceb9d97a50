"""Masks that hold while a model trains."""

from __future__ import annotations

from collections.abc import Callable
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


def regrown(program: Program, hook: MaskHook) -> None:
    """A training that does not hold the masks, and makes what they zeroed the largest."""
    with torch.no_grad():
        for name, mask in hook.plan.masks.items():
            program.module.get_parameter(name).masked_fill_(~mask, 9.0)


def emptied(program: Program, hook: MaskHook) -> None:
    """A training that leaves nothing: what is masked is no smaller than what is not."""
    with torch.no_grad():
        for name in hook.plan.masks:
            program.module.get_parameter(name).zero_()


@pytest.mark.parametrize("lesson", [regrown, emptied])
def test_patterns_nest_along_the_dimension_that_is_summed_over(lesson: Callable[..., None]) -> None:
    """3:4, 2:4, 1:4: what one round zeroes no later round brings back, whatever training does to it."""
    torch.manual_seed(0)
    net = Chain(a=nn.Conv2d(8, 8, 3), t=nn.ConvTranspose2d(8, 4, 3), b=nn.Conv2d(4, 8, 4))
    rounds: list[dict[str, torch.Tensor]] = []

    def train(program: Program, hook: MaskHook) -> None:
        rounds.append(dict(hook.plan.masks))
        lesson(program, hook)

    result = sparsify_gradually(
        net.eval(),
        torch.randn(2, 8, 6, 6),
        sparsify=Sparsify(pattern="1:4"),
        schedule=Schedule("linear", 3),
        train=train,
    )
    summed = {"a.weight": 1, "t.weight": 0, "b.weight": 1}
    for name, dim in summed.items():
        groups = [masks[name].movedim(dim, -1).reshape(-1, 4) for masks in rounds]
        assert [set(mask.sum(-1).tolist()) for mask in groups] == [{3}, {2}, {1}]
        assert all(not bool((later & ~earlier).any()) for earlier, later in pairwise(groups))
        assert torch.equal(result.plan.masks[name], rounds[-1][name])
        weight = result.program.module.get_parameter(name).movedim(dim, -1).reshape(-1, 4)
        assert int((weight != 0).sum(-1).max()) <= 1


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
