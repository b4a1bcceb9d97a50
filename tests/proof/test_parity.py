from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fxcompress.errors import ProofError
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.proof.parity import FLOOR, float_parity, parity_at_sizes
from tests.architectures.programs import captured
from tests.proof.artefacts import inputs, plain, with_edge, with_own_tensor, with_tensor


def swapped(values: np.ndarray) -> np.ndarray:
    values[[0, 1]] = values[[1, 0]]
    return values


def test_a_faithful_file_passes_with_room() -> None:
    program, model = plain()
    parity = float_parity(program, model, [inputs()])
    assert parity.output == "logits"
    assert parity.error < parity.bound / 4
    scale = program(inputs())["logits"].abs().max().item()
    assert parity.bound < 1e-4 * scale, "tight enough to see a weight that is off by a part in a thousand"


@pytest.mark.parametrize(
    "breakage",
    [
        lambda model: with_tensor(model, "second.weight", lambda values: values * 1.001),
        lambda model: with_tensor(model, "second.weight", swapped),
        lambda model: with_tensor(model, "head.bias", lambda values: values + 1e-3),
        lambda model: with_edge(model, "add", 1, "conv2d_1"),
    ],
    ids=["scaled weight", "swapped channels", "moved bias", "moved edge"],
)
def test_a_broken_file_is_caught_and_its_operator_named(
    breakage: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> None:
    program, model = plain()
    with pytest.raises(ProofError, match="logits") as caught:
        float_parity(program, breakage(model), [inputs()])
    assert caught.value.source is None or "artefacts.py" in caught.value.source


def test_the_first_operator_that_differs_is_shown() -> None:
    program, model = plain()
    broken = with_tensor(model, "second.weight", swapped)
    with pytest.raises(ProofError) as caught:
        float_parity(program, broken, [inputs()])
    assert caught.value.node is not None
    assert "%conv2d_1 :" in caught.value.node
    assert caught.value.source is not None
    assert "self.second(x)" in caught.value.source


def test_an_integer_output_must_be_equal() -> None:
    program = capture(Thresholds().eval(), torch.linspace(-1, 1, 12).reshape(2, 6))
    model = lower(program)
    feeds = program.flat_example()
    assert float_parity(program, model, feeds).error == 0.0
    (greater,) = [node.name for node in model.graph.node if node.op_type == "Greater"]
    broken = with_own_tensor(model, greater, 1, lambda values: values + 0.5)
    with pytest.raises(ProofError, match="inf"):
        float_parity(program, broken, feeds)


class Thresholds(nn.Module):
    """A boolean and an integer output."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x > 0.1, (x > 0.1).sum(1)


class Logarithm(nn.Module):
    """Infinite at zero, undefined below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x)


def test_infinities_must_be_in_the_same_places() -> None:
    program = capture(Logarithm(), torch.ones(2, 3))
    model = lower(program)
    nothing = float_parity(program, model, [torch.zeros(2, 3)])
    assert (nothing.error, nothing.bound) == (0.0, 0.0), "all masked with -inf, and right"
    x = torch.tensor([[0.0, 0.5, 2.0], [1.0, 4.0, float("inf")]])
    assert np.isfinite(float_parity(program, model, [x]).error)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].op_type = "Abs"
    with pytest.raises(ProofError):
        float_parity(program, broken, [x])


@pytest.mark.parametrize("x", [torch.full((2, 3), -1.0), torch.tensor([[1.0, 2.0, -3.0]])])
def test_a_program_that_gives_nan_is_refused_and_its_operator_named(x: torch.Tensor) -> None:
    """Once, nothing finite meant nothing to compare, and a model of NaN alone passed."""
    program = capture(Logarithm(), torch.ones(2, 3))
    with pytest.raises(ProofError, match="itself gives NaN") as caught:
        float_parity(program, lower(program), [x])
    assert caught.value.node is not None
    assert "aten.log" in caught.value.node
    assert caught.value.source is not None
    assert "torch.log(x)" in caught.value.source


class _Centred(nn.Module):
    """Subtracts the mean over the batch, by its size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.sum(0, keepdim=True) / x.shape[0]


def test_a_size_that_is_baked_into_the_file_is_caught() -> None:
    """Right at the example's batch of two, and wrong at any other."""
    program = capture(_Centred(), torch.randn(2, 5))
    model = lower(program)
    assert parity_at_sizes(program, model).error < 1e-6
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    division = next(node for node in broken.graph.node if node.op_type == "Div")
    division.input[1] = "baked"
    broken.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(2.0, np.float32), "baked"))
    float_parity(program, broken, program.flat_example())
    with pytest.raises(ProofError, match=r"x\[3, 5\], larger than the example"):
        parity_at_sizes(program, broken)


def test_the_bound_follows_the_networks_own_rounding() -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1e4) - 1e4

    program = capture(Shifted(), torch.rand(2, 8))
    parity = float_parity(program, lower(program), program.flat_example())
    assert parity.error > FLOOR, "a fixed tolerance would refuse this"
    assert parity.error < parity.bound


class _Narrow(nn.Module):
    """A network with a stretch in half precision, whose roundings may fall to either side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).to(torch.float16).relu().float())


def test_a_stretch_in_half_precision_is_held_to_half_precision() -> None:
    """Once refused: the bound of float32 was asked of a program that rounds to float16."""
    program = capture(_Narrow().eval(), torch.randn(64, 32))
    model = lower(program)
    assert float_parity(program, model, [torch.randn(64, 32)]).bound > 1e-4
    broken = with_tensor(model, "second.weight", lambda values: values * 1.05)
    with pytest.raises(ProofError):
        float_parity(program, broken, [torch.randn(64, 32)])


def test_missing_outputs_and_other_shapes_are_caught() -> None:
    program, model = plain()
    short = onnx.ModelProto()
    short.CopyFrom(model)
    del short.graph.output[1]
    with pytest.raises(ProofError, match="outputs"):
        float_parity(program, short, [inputs()])


@pytest.mark.parametrize("name", ["mobilenet_hardswish", pytest.param("hf_llama", marks=pytest.mark.slow)])
def test_deep_networks_pass_with_room(name: str) -> None:
    program = captured(name)
    parity = float_parity(program, lower(program), program.flat_example())
    assert parity.error < parity.bound / 4
