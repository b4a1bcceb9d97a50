"""Penalties: values and gradients by hand, and planted channels that training under them empties."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import analyse
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.plan.pruning_plan import make_plan
from fxcompress.recovery.regularizers import batch_norm_scale, group_lasso, removed_weights
from tests.passes.models import Chain
from tests.recovery.models import example, net


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return Chain(a=nn.Linear(3, 4), r=nn.ReLU(), b=nn.Linear(4, 2)).double()


def by_hand(model: nn.Module) -> tuple[Tensor, int]:
    """The norm of each hidden unit: its row, its bias and its column; and how many weights that is."""
    a, b = model.get_submodule("a"), model.get_submodule("b")
    return (a.weight.square().sum(1) + a.bias.square() + b.weight.square().sum(0)).sqrt(), 3 + 1 + 2


def gradients(model: nn.Module, penalty: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True))


def test_group_lasso_by_hand() -> None:
    """The gradient of `sqrt(n) |w|` is `sqrt(n) w / |w|`, for every weight of an index alike."""
    model = two_layers()
    penalty = group_lasso(analyse(capture(model.eval(), torch.randn(2, 3).double())))
    norms, count = by_hand(model)
    norms = norms.detach()
    value = penalty.penalty(model)
    assert float(value.detach()) == pytest.approx(float(sqrt(count) * norms.sum()), rel=1e-12)
    found = gradients(model, value)
    a, b = model.get_submodule("a"), model.get_submodule("b")
    scale = sqrt(count) / norms
    wanted = [a.weight * scale[:, None], a.bias * scale, b.weight * scale, None]
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert other is None or torch.allclose(one, other, rtol=1e-12)


def test_an_empty_channel_has_no_gradient_and_no_nan() -> None:
    model = two_layers()
    penalty = group_lasso(analyse(capture(model.eval(), torch.randn(2, 3).double())))
    a, b = model.get_submodule("a"), model.get_submodule("b")
    with torch.no_grad():
        a.weight[1], a.bias[1], b.weight[:, 1] = 0, 0, 0
    found = gradients(model, penalty(model))
    assert not bool(found[0][1].any())
    assert all(bool(one.isfinite().all()) for one in found if one is not None)


def test_the_pull_does_not_depend_on_the_size() -> None:
    """With weights of one magnitude every weight is pulled with force one, however many there are."""
    for width in (3, 300):
        model = Chain(a=nn.Linear(width, 4, bias=False), r=nn.ReLU(), b=nn.Linear(4, 2, bias=False)).eval()
        for parameter in model.parameters():
            nn.init.constant_(parameter, -0.5)
        penalty = group_lasso(analyse(capture(model, torch.randn(2, width))))
        assert all(torch.allclose(one, torch.tensor(-1.0)) for one in gradients(model, penalty(model)))


def test_batch_norm_scale_by_hand() -> None:
    model = net()
    penalty = batch_norm_scale(analyse(capture(model, example())))
    norms = [model.get_parameter(name) for name in ("stem.1.weight", "one.1.weight", "two.1.weight")]
    with torch.no_grad():
        for norm in norms:
            norm.copy_(torch.randn(norm.shape))
    value = penalty(model)
    assert float(value.detach()) == pytest.approx(
        sum(float(norm.detach().abs().sum()) for norm in norms), rel=1e-6
    )
    value.backward()
    assert all(torch.equal(norm.grad, norm.sign()) for norm in norms)
    assert all(p.grad is None for name, p in model.named_parameters() if ".1.weight" not in name)


def test_scales_of_frozen_channels_do_not_count() -> None:
    """The last norm works on the outputs, which may not shrink."""
    model = Chain(a=nn.Linear(3, 4), n=nn.BatchNorm1d(4), b=nn.Linear(4, 2), m=nn.BatchNorm1d(2)).eval()
    penalty = batch_norm_scale(analyse(capture(model, torch.randn(2, 3))))
    assert float(penalty(model).detach()) == 4.0


def test_removed_weights_by_hand() -> None:
    model = two_layers()
    analysis = analyse(capture(model.eval(), torch.randn(2, 3).double()))
    penalty = removed_weights(analysis, make_plan(analysis, {"a.weight[0]": (0, 3)}))
    norms = by_hand(model)[0].detach()
    value = penalty(model)
    assert float(value.detach()) == pytest.approx(0.5 * float(norms[1:3].square().sum()), rel=1e-12)
    found = gradients(model, value)
    a = model.get_submodule("a")
    wanted = torch.zeros_like(a.weight).index_copy(0, torch.tensor([1, 2]), a.weight[1:3])
    assert torch.allclose(found[0], wanted)


@pytest.mark.parametrize("own", [True, False], ids=["own module", "program"])
def test_training_empties_planted_channels_and_pruning_picks_them(own: bool) -> None:
    """Half of the units read only zeros; their weights are large, so that magnitude alone keeps them."""
    torch.manual_seed(0)
    model = Chain(a=nn.Linear(16, 16, bias=False), b=nn.Linear(16, 8, bias=False)).eval()
    useless = set(range(0, 16, 2))
    rows = torch.tensor(sorted(useless))
    with torch.no_grad():
        model.get_parameter("a.weight")[:, 8:] = 0
        model.get_parameter("a.weight")[rows, :8] = 0
        model.get_parameter("a.weight")[rows, 8:] = 0.7
        model.get_parameter("b.weight")[:, rows] = 0  # nor does the loss pull at them: a saddle
    x = torch.cat([torch.randn(128, 8), torch.zeros(128, 8)], 1)
    y = x[:, :8] @ torch.linalg.qr(torch.randn(8, 8))[0]  # of rank 8: no useful unit can be spared
    program = capture(model, x[:2])
    analysis = analyse(program)
    options = Prune(0.5, block=1)
    assert set(plan_pruning(analysis, options, 1).channels["a.weight[0]"]) & useless
    module = model if own else program.copy(share=False).module
    penalty = group_lasso(analysis)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(600):
        optimizer.zero_grad()
        ((module(x) - y).square().sum(1).mean() + 0.02 * penalty(module)).backward()
        optimizer.step()
    trained = capture(module, x[:2]) if own else program.copy(share=False)
    if not own:
        trained.module.load_state_dict(module.state_dict())
    plan = plan_pruning(analyse(trained), options, 1)
    assert set(plan.channels["a.weight[0]"]) == set(range(16)) - useless
    pruned = PruneChannels(plan).run(trained).program
    with torch.no_grad():
        assert float(nn.functional.mse_loss(pruned(x), y)) < 0.2 * float(y.square().mean())


def test_another_module_is_refused() -> None:
    program = capture(net(), example())
    analysis = analyse(program)
    pruned = PruneChannels(plan_pruning(analysis, Prune(0.5, block=1), 1)).run(program).program
    for penalty in (group_lasso(analysis), batch_norm_scale(analysis)):
        with pytest.raises(InputError, match="the penalty was made for"):
            penalty(pruned.module)
    with pytest.raises(InputError, match="no such parameter"):
        group_lasso(analysis)(nn.Sequential(net()))
    assert float(group_lasso(analyse(pruned))(pruned.module).detach()) > 0


def test_models_without_channels_are_refused() -> None:
    analysis = analyse(capture(nn.Linear(3, 2).eval(), torch.randn(2, 3)))
    with pytest.raises(InputError, match="no prunable group"):
        group_lasso(analysis)
    with pytest.raises(InputError, match="no batch norm"):
        batch_norm_scale(analyse(capture(two_layers().float().eval(), torch.randn(2, 3))))
