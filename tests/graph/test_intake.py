"""Models as people bring them: captured, pruned, proven and lowered, under the names of their state dict."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.ao.quantization import DeQuantStub, FakeQuantize, QuantStub
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as masks
from torch.optim.swa_utils import AveragedModel

import fxcompress
from fxcompress.analysis.groups import analyse
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.pruning_plan import make_plan
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from fxcompress.recipes import LOSSLESS
from fxcompress.runtime.session import open_session
from tests.architectures.programs import random_plan

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()


def masked() -> nn.Module:
    model = net()
    masks.l1_unstructured(model[0], "weight", 0.5)
    masks.ln_structured(model[3], "weight", 0.5, 2, 0)
    masks.random_unstructured(model[7], "bias", 0.2)
    return model


def with_parametrizations() -> nn.Module:
    model = net()
    parametrizations.weight_norm(model[0])
    parametrizations.spectral_norm(model[3])
    return model.eval()


def orthogonal() -> nn.Module:
    model = net()
    parametrizations.orthogonal(model[7])
    return model


class Squashed(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight)


def own_parametrization() -> nn.Module:
    model = net()
    parametrize.register_parametrization(model[3], "weight", Squashed())
    return model


def with_old_hooks() -> nn.Module:
    model = net()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])
    nn.utils.spectral_norm(model[3])
    return model.eval()


class Stubs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.net, self.dequant = QuantStub(), net(), DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.net(self.quant(x)))


class Scaled(nn.Module):
    """A plain tensor as an attribute, neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = net(), torch.rand(1, 8, 1, 1) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.net[1:](self.net[0](x) * self.scale)


def with_forward_hooks() -> nn.Module:
    model = net()
    model[0].register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    model[3].register_forward_hook(lambda module, given, result: 2 * result)
    return model


def frozen() -> nn.Module:
    return net().requires_grad_(False)


def lazy_that_ran() -> nn.Module:
    model = net()
    model[3] = nn.LazyConv2d(8, 3, padding=1)
    model(IMAGES)
    return model.eval()


BROUGHT: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build
    for build in (
        masked,
        with_parametrizations,
        orthogonal,
        own_parametrization,
        with_old_hooks,
        with_forward_hooks,
        frozen,
        lazy_that_ran,
    )
} | {"stubs": lambda: Stubs().eval(), "plain_tensor": lambda: Scaled().eval()}


@pytest.mark.parametrize("name", BROUGHT)
def test_brought_models_are_pruned_proven_and_lowered(name: str) -> None:
    model = BROUGHT[name]()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    program = capture(model, IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(program(IMAGES), model(IMAGES))
    assert set(dict(program.module.named_parameters())) == set(dict(model.named_parameters()))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    copy.deepcopy(model)  # no tracing tensor was left behind

    plan = random_plan(analyse(program), 0)
    assert plan.channels
    assert set(plan.kept) <= {*state, "scale", "constant_scale"}
    pruned = PruneChannels(plan).run(program).program
    masked_equivalence(program, pruned, plan)
    deployed = Journal().apply_all(LOSSLESS, pruned)
    with torch.no_grad():
        expected = pruned(IMAGES)
    session = open_session(lower(deployed))
    (result,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["masked", "with_parametrizations", "with_old_hooks", "own_parametrization"])
def test_what_depends_on_parameters_trains_and_folds_at_the_end(name: str) -> None:
    program = capture(BROUGHT[name](), IMAGES)
    program.train()
    program(IMAGES).square().mean().backward()
    assert all(parameter.grad is not None for parameter in program.module.parameters())
    deployed = Journal().apply_all(LOSSLESS, program.eval())
    for node in deployed.graph.nodes:
        assert node.op != "call_function" or any(item.op != "get_attr" for item in node.all_input_nodes)


def test_masks_stay_in_force_and_are_seen_where_channels_are_ranked() -> None:
    model = masked()
    program = capture(model, IMAGES)
    weight = walk.tensor(program, "3.weight_orig").detach()
    assert torch.equal(weight, model[3].weight_orig.detach() * model[3].weight_mask)
    assert any("torch.nn.utils.prune" in note for note in program.notes)
    optimizer = torch.optim.SGD(program.module.parameters(), 0.1)
    program.train()
    program(IMAGES).square().mean().backward()
    optimizer.step()
    assert torch.equal(walk.tensor(program, "3.weight_orig").detach() == 0, model[3].weight_mask == 0)
    with torch.no_grad():
        model[3].weight_orig.fill_(1)  # the model is not what the program holds
    assert not torch.equal(walk.tensor(program, "3.weight_orig"), model[3].weight_orig)


def test_a_mask_that_scales_is_left_alone() -> None:
    model = masked()
    model[0].weight_mask.mul_(0.5)
    program = capture(model, IMAGES)
    assert torch.equal(walk.tensor(program, "0.weight_orig"), model[0].weight_orig)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "data-parallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled data-parallel": lambda model: torch.compile(nn.DataParallel(model)),
    "averaged": AveragedModel,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_names_are_those_of_the_model_inside_a_wrapper(wrap: Callable[[nn.Module], Any]) -> None:
    program = capture(wrap(net()).eval(), IMAGES)
    assert set(dict(program.module.named_parameters())) == set(dict(net().named_parameters()))
    plan = make_plan(analyse(program), {"0.weight[0]": (1, 2, 5)})
    assert plan.kept["3.weight"][1] == (1, 2, 5)
    PruneChannels(plan).run(capture(net(), IMAGES))  # a plan of the wrapped model fits the bare one


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile()
    model[0].compile()
    return model


def wrapped_inside(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    return lambda model: nn.Sequential(wrap(model), nn.Identity())


INSIDE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled in place": compiled_in_place,
    "compiled part": wrapped_inside(torch.compile),
    "data-parallel part": wrapped_inside(nn.DataParallel),
}


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), *INSIDE.values()], ids=[*WRAPPERS, *INSIDE])
def test_wrapped_models_are_captured_pruned_and_lowered(wrap: Callable[[nn.Module], Any]) -> None:
    """Whatever is wrapped, and wherever: the same values, half of the MACs, proven and run."""
    program = capture(wrap(net()).eval(), IMAGES)
    with torch.no_grad():
        assert torch.equal(program.module(IMAGES), net().eval()(IMAGES))
    result = fxcompress.optimize(program, prune=0.5)
    assert (result.report.ratio("macs") or 1.0) <= 0.5
    float_parity(program, lower(program), [IMAGES])


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU()).eval()


def fake_quantized() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), FakeQuantize()).eval()


def scripted_inside() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="script"):
        return nn.Sequential(torch.jit.script(nn.Conv2d(3, 8, 3)), nn.ReLU()).eval()


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return net()


def elsewhere() -> nn.Module:
    model = net()
    with FakeTensorMode():  # needs no such device
        model.register_buffer("far", torch.zeros(3, device="cuda:1"))
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lazy, "0.weight has no shape yet"),
        (fake_quantized, "no scale yet"),
        (scripted_inside, r"TorchScript module \(0\)"),
        (made_in_inference_mode, r"inference_mode[\s\S]*deepcopy"),
        (elsewhere, r"on cuda:1 \(far\)[\s\S]*cpu\(\)"),
        (lambda: net().to("meta"), "no weights"),
        (lambda: net().train(), r"training mode \(1: BatchNorm2d\)[\s\S]*eval\(\)"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_what_to_do(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        capture(build(), IMAGES)


def test_the_hint_about_inference_mode_works() -> None:
    capture(copy.deepcopy(made_in_inference_mode()), IMAGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_pruned_as_they_are(dtype: torch.dtype) -> None:
    program = capture(net().to(dtype), IMAGES.to(dtype))
    plan = random_plan(analyse(program), 0)
    pruned = PruneChannels(plan).run(program).program
    masked_equivalence(program, pruned, plan)
    assert {parameter.dtype for parameter in pruned.module.parameters()} == {dtype}


class Tied(nn.Module):
    """A table and a head that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


def test_a_tied_weight_is_not_masked_for_those_who_read_it_without() -> None:
    """`prune` keeps the shared parameter as `table.weight_orig`, and the head goes on reading all of it."""
    model, ids = Tied(), torch.randint(0, 50, (2, 3))
    masks.l1_unstructured(model.table, "weight", 0.5)
    model.eval()
    program = capture(model, ids)
    with torch.no_grad():
        torch.testing.assert_close(program(ids), model(ids))
    assert not any("set to zero" in note for note in program.notes)


class Normed(nn.Module):
    """A batch norm and a dropout: both do something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def test_the_mode_of_a_graph_is_in_its_nodes() -> None:
    """Modules of torch.export, and of the pt2e quantizers of torchao, are flagged as training for good."""
    x = torch.randn(2, 3, 8, 8)
    model = Normed().eval()
    exported = torch.export.export(model, (x,)).module()
    assert exported.training
    with torch.no_grad():
        torch.testing.assert_close(capture(exported, (x,))(x), model(x), rtol=0.0, atol=0.0)
    with pytest.raises(InputError, match="was made in training mode: %batch_norm") as caught:
        capture(torch.export.export(Normed().train(), (x,)).module(), (x,))
    assert "before torch.export" in str(caught.value)
