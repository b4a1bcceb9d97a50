"""Evidence: what is gathered from data, against autograd and NumPy; whose label it is; what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxcompress
from fxcompress.analysis.evidence import (
    ACTIVATIONS,
    COVARIANCE,
    GATES,
    GRADIENTS,
    Evidence,
    gather,
    needs_of,
)
from fxcompress.analysis.losses import own_loss
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.numerics.saliency import DATA_KINDS, KINDS, NAMED
from tests.passes.models import Apply

ALL = frozenset({ACTIVATIONS, COVARIANCE, GATES, GRADIENTS})


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def batches(count: int = 2, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 2, 6, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval()


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return capture(model, torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def evidence(program: Program) -> Evidence:
    return gather(program, batches(), ALL)


def readers(program: Program) -> dict[str, str]:
    """By weight, the activation that is multiplied with it."""
    return {
        str(node.args[1].target): node.args[0].name
        for node in program.graph.nodes
        if node.op == "call_function" and len(node.args) > 1 and getattr(node.args[1], "op", "") == "get_attr"
    }


@pytest.mark.parametrize(("weight", "dim"), [("head.weight", 1), ("second.weight", 1), ("first.weight", 1)])
def test_a_gate_is_the_sum_of_gradient_times_weight_over_a_slice(
    model: nn.Module, program: Program, evidence: Evidence, weight: str, dim: int
) -> None:
    """Sample by sample, as Molchanov et al. 2019 define it; for a grouped convolution inside each group."""
    parameter = dict(model.named_parameters())[weight]
    answers = []
    for inputs, labels in batches():
        for x, label in zip(inputs, labels, strict=True):
            (gradient,) = torch.autograd.grad(
                functional.cross_entropy(model(x[None]), label[None]), [parameter]
            )
            product = (gradient * parameter).detach().double()
            if weight == "second.weight":
                product = product.reshape(2, 3, 2, 3, 3).sum((1, 3, 4)).reshape(4)
            else:
                product = product.movedim(dim, 0).flatten(1).sum(1)
            answers.append(product.numpy())
    gates = evidence.gates[readers(program)[weight], 1]
    assert np.allclose(gates.absolute, np.abs(answers).mean(0), rtol=1e-4, atol=1e-9)
    assert np.allclose(gates.square, np.square(answers).mean(0), rtol=1e-4, atol=1e-12)


def test_moments_and_covariances(model: nn.Module, program: Program, evidence: Evidence) -> None:
    with torch.no_grad():
        rows = [torch.tanh(model.norm(model.first(x))).movedim(1, -1).reshape(-1, 4) for x, _ in batches()]
    x = torch.cat(rows).double().numpy()
    site = readers(program)["second.weight"], 1
    found = evidence.moments[site]
    assert np.allclose(found.mean, x.mean(0), atol=1e-7)
    assert np.allclose(found.absolute, np.abs(x).mean(0))
    assert np.allclose(found.square, (x**2).mean(0))
    assert np.array_equal(found.active, np.ones(4))
    assert np.allclose(evidence.covariances[site], np.cov(x.T, bias=True), atol=1e-7)
    rectified = evidence.moments[readers(program)["head.weight"], 1]
    assert rectified.active.shape == (6,)


def test_squared_gradients(model: nn.Module, evidence: Evidence) -> None:
    expected = torch.zeros(3)
    for inputs, labels in batches():
        loss = functional.cross_entropy(model(inputs), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, [model.head.bias])
        expected += gradient**2 / len(labels) / 2
    assert np.allclose(evidence.squared_gradients["head.bias"], expected.numpy(), rtol=1e-4)
    assert "norm.running_mean" not in evidence.squared_gradients


def test_the_same_data_gives_the_same_evidence_in_any_batches(program: Program) -> None:
    """Sums over samples do not depend on how they are batched, and nothing is left in the model."""
    parts = [(x[i : i + 2], y[i : i + 2]) for x, y in batches() for i in (0, 2)]
    needs = frozenset({GATES, ACTIVATIONS})
    whole, again, split = (gather(program, data, needs) for data in (batches(), batches(), parts))
    assert whole.samples == split.samples == 8
    for site, gates in whole.gates.items():
        assert np.array_equal(gates.square, again.gates[site].square)
        assert np.allclose(gates.square, split.gates[site].square, rtol=1e-4, atol=1e-12)
        assert np.allclose(whole.moments[site].square, split.moments[site].square, rtol=1e-5)
    assert all(parameter.grad is None for parameter in program.module.parameters())


def test_data_streams(program: Program) -> None:
    """A generator is enough: one batch is held at a time."""

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches()

    assert gather(program, stream(), frozenset({ACTIVATIONS})).samples == 8


def test_frozen_parameters_are_differentiated_too(model: nn.Module) -> None:
    """A backbone with `requires_grad=False` has gates like any other."""
    frozen = Small().eval()
    frozen.load_state_dict(model.state_dict())
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    found = gather(capture(frozen, torch.randn(2, 2, 6, 6)), batches(), frozenset({GATES, GRADIENTS}))
    assert all(gates.square.max() > 0 for gates in found.gates.values())
    assert all(square.max() > 0 for square in found.squared_gradients.values())


def test_a_loss_that_fails_is_named_with_its_batch(program: Program) -> None:
    def broken(outputs: object, label: object) -> Tensor:
        raise KeyError("logits")

    with pytest.raises(
        InputError, match=r"(?s)the loss failed: KeyError: 'logits'.*calibration batch 0"
    ) as info:
        gather(program, batches(), frozenset({GATES}), broken)
    assert isinstance(info.value.__cause__, KeyError)


def test_a_loss_of_the_users_own(program: Program) -> None:
    seen = []

    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        seen.append((tuple(outputs.shape), tuple(label.shape)))
        return functional.cross_entropy(outputs, label, reduction="sum")

    needs = frozenset({GATES})
    own, given = gather(program, batches(), needs), gather(program, batches(), needs, loss)
    assert seen == [((4, 3), (4,))] * 2
    assert all(np.array_equal(own.gates[site].square, given.gates[site].square) for site in own.gates)


def test_without_labels_they_are_drawn_from_the_model(program: Program) -> None:
    """The same draw for the same seed, another for another."""
    inputs = [x for x, _ in batches()]
    first, again, other = (gather(program, inputs, frozenset({GATES}), seed=seed) for seed in (0, 0, 5))
    site = next(iter(first.gates))
    assert np.array_equal(first.gates[site].square, again.gates[site].square)
    assert not np.array_equal(first.gates[site].square, other.gates[site].square)


@pytest.mark.parametrize(
    ("output", "label", "expected"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 3]), 2 * np.log(4)),
        (torch.zeros(2, 4), [0, 3], 2 * np.log(4)),
        (torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.long), 10 * np.log(4)),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int32), 18 * np.log(4)),
        (torch.zeros(2, 4), torch.full((2, 4), 2.0), 16.0),
    ],
)
def test_labels_that_fit(output: Tensor, label: object, expected: float) -> None:
    assert float(own_loss({"y": output}, label, torch.Generator())) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("outputs", "label", "message"),
    [
        ({"y": torch.zeros(2, 4)}, torch.tensor([0, 4]), "a label is 4"),
        ({"y": torch.zeros(2, 4)}, torch.zeros(3), "fits no output"),
        ({"y": torch.zeros(2, 4)}, object(), "is not understood"),
        ({"y": torch.zeros(2, 4, dtype=torch.int64)}, None, "no output is a floating"),
    ],
)
def test_labels_that_do_not_fit(outputs: dict[str, Tensor], label: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        own_loss(outputs, label, torch.Generator())


def test_an_output_that_is_no_classification_gives_its_own_noise() -> None:
    """Squared gradients of `-(y * noise)` average to those of the squared error: the Fisher of a Gaussian."""
    y = torch.zeros(2, 3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(own_loss({"y": y}, None, torch.Generator().manual_seed(0)), [y])
    assert 0.4 < float(gradient.square().mean()) < 1.8


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first(x) * 0).sqrt())


def test_a_gradient_that_is_no_number_names_the_parameter() -> None:
    program = capture(Root().eval(), torch.randn(2, 2))
    data = [(torch.randn(2, 2), torch.tensor([0, 1]))]
    with pytest.raises(InputError, match=r"the gradient at first\.weight holds a NaN") as caught:
        gather(program, data, frozenset({GRADIENTS}))
    assert "in calibration batch 0" in caught.value.context


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, label: y, r"the loss gave Tensor \[4, 3\]"),
        (lambda y, label: 1.0, "the loss gave float"),
        (lambda y, label: y.detach().sum(), "does not depend"),
        (lambda y, label: y.sum() * float("nan"), "the loss is nan"),
    ],
)
def test_losses_that_say_nothing(program: Program, loss: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gather(program, batches(), frozenset({GATES}), loss)


def test_needs() -> None:
    assert {kind for kind in KINDS if needs_of(NAMED[kind])} == set(DATA_KINDS)


class Attention(nn.Module):
    """Attention over as many tokens as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)


@pytest.mark.parametrize(
    "kind",
    ["activation", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("reconstruction", "taylor"))],
)
def test_batches_may_be_of_several_lengths(kind: str) -> None:
    """A sum over tokens holds no channels, and is not measured."""
    shapes = {"x": {0: "batch", 1: "tokens"}}
    program = capture(Attention().eval(), torch.randn(2, 6, 8), dynamic_shapes=shapes)
    data = [torch.randn(4, 10, 8), torch.randn(3, 7, 8)]
    asked = fxcompress.Prune(0.3, block=1, saliency=kind, compensate=False)
    assert fxcompress.optimize(program, prune=asked, calibration=data).report.ratio("macs") < 0.8


def test_a_nan_in_what_is_gathered_is_told_with_its_operator() -> None:
    """Once it became equal scores, and channels were cut by their position."""

    def poisoned(m: nn.Module, x: Tensor) -> Tensor:
        return m.b((m.a(x) - 1e3).log())

    model = Apply(poisoned, a=nn.Linear(4, 16), b=nn.Linear(16, 3)).eval()
    asked = fxcompress.Prune(0.3, block=1, saliency="activation", compensate=False)
    with pytest.raises(InputError, match="log holds a NaN or an infinity") as caught:
        fxcompress.optimize(model, torch.rand(4, 4), prune=asked, calibration=[torch.rand(8, 4)])
    assert caught.value.source is not None


def test_a_label_that_stands_for_none_is_said_how() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    data = [(torch.randn(3, 4), torch.tensor([0, -1, 2]))]
    asked = fxcompress.Prune(0.3, block=1, saliency="taylor", compensate=False)
    with pytest.raises(InputError, match="a label is -1"):
        fxcompress.optimize(model, torch.randn(2, 4), prune=asked, calibration=data)
    data = [(torch.randn(3, 4), torch.tensor([0, -100, 2]))]
    fxcompress.optimize(model, torch.randn(2, 4), prune=asked, calibration=data)
