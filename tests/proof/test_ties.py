"""Roundings on the border of two integers are told from operators that are wrong by less than a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ProofError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import drop_quantizers
from fxcompress.lowering.lower import lower
from fxcompress.proof import integer, ties
from fxcompress.proof.integer import integer_bound
from fxcompress.proof.ties import WRITTEN, flips, rounding
from fxcompress.runtime.inspection import executed
from tests.proof.artefacts import inputs, int8, plain, quantized, with_own_tensor, with_tensor

STEP = 1.0 / 64.0
ZERO = 128
BYTE = (STEP, ZERO, 0, 255, torch.uint8)

Breakage = Callable[[onnx.ModelProto], onnx.ModelProto]


def compared(values: list[float], theirs: list[int]) -> ties.Flips:
    """Values in steps, against the integers of a session."""
    value = torch.tensor(values, dtype=torch.float64) * STEP
    mine = (value / STEP + ZERO).round().clamp(0, 255).to(torch.uint8)
    return flips(value.float(), mine, torch.tensor(theirs, dtype=torch.uint8), STEP, ZERO)


def test_equal_integers_have_no_flips() -> None:
    found = compared([1.2, -3.0], [129, 125])
    assert (found.of, found.count, found.steps, found.ties(0.0)) == (2, 0, 0, True)


@pytest.mark.parametrize(
    ("value", "theirs", "past"),
    [(1.499, 130, 0.001), (1.501, 129, 0.001), (1.45, 130, 0.05), (-0.52, 128, 0.02), (1.0, 130, 0.5)],
)
def test_a_flip_lies_so_far_past_the_border(value: float, theirs: int, past: float) -> None:
    found = compared([value, 0.0], [theirs, 128])
    assert (found.count, found.steps) == (1, 1)
    assert found.past == pytest.approx(past, abs=1e-5)
    assert found.ties(past + 1e-4)
    assert not found.ties(past - 1e-4)


def test_a_saturated_value_has_no_border_beyond_the_last_integer() -> None:
    assert compared([300.0, 127.0], [255, 255]).count == 0
    assert compared([300.0, 127.0], [254, 255]).past == pytest.approx(173.5, abs=1e-3)


def test_two_steps_are_no_tie_wherever_the_value_lies() -> None:
    found = compared([1.5], [132])
    assert found.steps == 2
    assert not found.ties(1.0)
    assert "up to 2 steps" in found.said("q", WRITTEN)


@pytest.mark.parametrize(("value", "is_tie"), [(60000.51, True), (60000.7, False), (60.51, False)])
def test_float32_resolves_so_much_of_a_fine_step(value: float, is_tie: bool) -> None:
    """A tenth of a step of 60,000 is 16 times the last bit; a small value beside it has finer ones."""
    numbers = torch.tensor([value, 60000.0], dtype=torch.float64) / 1024
    mine = (numbers * 1024).round().int()
    theirs = mine - torch.tensor([1, 0], dtype=torch.int32)
    assert flips(numbers, mine, theirs, 1 / 1024, 0).ties(WRITTEN) == is_tie


def test_what_is_not_a_number_is_no_tie() -> None:
    integers = torch.tensor([[3], [4]], dtype=torch.uint8)
    assert not flips(torch.tensor([float("nan")]), integers[0], integers[1], STEP, ZERO).ties(1.0)


def test_rounding_is_measured_where_integers_do_not_saturate() -> None:
    exact = torch.tensor([1.0, 300.0, -1e9], dtype=torch.float64) * STEP
    single = exact + torch.tensor([0.01, 5.0, 1e3], dtype=torch.float64) * STEP
    assert rounding(single, exact, STEP, ZERO, 0, 255) == pytest.approx(0.01)
    assert rounding(single[1:], exact[1:], STEP, ZERO, 0, 255) == 0.0


class Tie(nn.Module):
    """Little that quantization costs, and a float bias that the runtime rounds to its accumulator's integers.

    The first output of the first linear on the first sample lies 0.006 of a step below the border between
    two integers, and above it with the rounded bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.tensor([[97, 0], [0, 64]], dtype=torch.int8))
        self.register_buffer("second", torch.tensor([[64, 64], [64, -64]], dtype=torch.int8))
        self.bias = nn.Parameter(torch.tensor([-1.4, 0.0]) * STEP**2)

    def pair(self, x: Tensor) -> Tensor:
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *BYTE), *BYTE)

    def weight(self, name: str) -> Tensor:
        return quantized.dequantize_per_tensor(getattr(self, name), STEP, 0, -127, 127, torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(nn.functional.linear(self.pair(x), self.weight("first"), self.bias))
        return nn.functional.linear(x, self.weight("second"))


SAMPLES = torch.tensor([[1.0, 3.0], [0.0, 5.0]]) * STEP


def tie() -> tuple[Program, Program, onnx.ModelProto]:
    program = capture(Tie().eval(), SAMPLES)
    without = program.copy()
    drop_quantizers(without)
    return without, program, lower(program)


def test_one_tie_may_be_more_than_quantization_costs() -> None:
    without, program, model = tie()
    assert [kernel.op_type for kernel in executed(model) if kernel.integer] == ["QGemm", "QGemm"]
    found = integer_bound(without, program, model, [SAMPLES])
    with torch.no_grad():
        cost = float((program(SAMPLES) - without(SAMPLES)).norm())
    assert found.off_by_one == 1 / 16
    assert cost < found.error <= found.bound


def test_a_step_that_is_no_tie_allows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    without, program, model = tie()
    monkeypatch.setattr(integer, "KERNEL", 1e-3)
    with pytest.raises(ProofError, match="quantization itself costs"):
        integer_bound(without, program, model, [SAMPLES])


def test_a_tie_excuses_no_other_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    without, program, model = tie()
    original = integer.outputs_of

    def off(*args: object, **kwargs: object) -> list[np.ndarray]:
        (output,) = original(*args, **kwargs)  # type: ignore[arg-type]
        return [output + 3 * STEP]

    monkeypatch.setattr(integer, "outputs_of", off)
    with pytest.raises(ProofError, match="quantization itself costs"):
        integer_bound(without, program, model, [SAMPLES])


def scaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    reader = next(node.name for node in model.graph.node if node.input[0] == "second_weight")
    return with_own_tensor(model, reader, 1, lambda scale: scale * factor)


@pytest.mark.parametrize(
    "breakage",
    [
        *(partial(scaled, factor=factor) for factor in (1.01, 1.0003, 0.999)),
        lambda model: with_tensor(model, "second_bias", lambda bias: bias + 50),
        lambda model: with_own_tensor(model, "dequantize_per_tensor_1", 1, lambda scale: scale * 1.0003),
        lambda model: with_own_tensor(model, "quantize_per_tensor_2", 1, lambda scale: scale * 1.0003),
    ],
)
def test_a_fault_of_less_than_a_step_is_caught(
    breakage: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> None:
    """No integer moves by more than one step, and no output by more than its bound."""
    with pytest.raises(ProofError, match=r"is one step away[\s\S]*no tie explains it") as caught:
        integer_bound(plain()[0], int8()[0], breakage(int8()[1]), [inputs()])
    assert "artefacts.py" in str(caught.value)


class Moments(nn.Module):
    """A variance by the difference of two large moments, which float32 knows to a few digits."""

    def forward(self, x: Tensor) -> Tensor:
        mean, square = x.mean(1, keepdim=True), (x * x).mean(1, keepdim=True)
        x = (x - mean) / (square - mean * mean + 1e-5).sqrt()
        scheme = (0.03, 128, 0, 255, torch.uint8)
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *scheme), *scheme)


def shifted(values: np.ndarray) -> np.ndarray:
    return values * np.float32(1.1)


@pytest.mark.parametrize("mean", [100.0, 200.0])
def test_a_stretch_that_cancels_is_held_to_its_own_rounding(mean: float) -> None:
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)) + mean
    program = capture(Moments().eval(), x)
    without = program.copy()
    drop_quantizers(without)
    model = lower(program)
    found = integer_bound(without, program, model, [x])
    assert found.off_by_one > 0.01
    (quantizer,) = (node.name for node in model.graph.node if node.op_type == "QuantizeLinear")
    with pytest.raises(ProofError, match="steps"):
        integer_bound(without, program, with_own_tensor(model, quantizer, 1, shifted), [x])


class Masked(nn.Module):
    """Scores under a mask of large numbers, quantized: most integers saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)
        self.register_buffer("mask", torch.full((12, 12), -1e9).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4 + self.mask
        scheme = (0.03, 128, 0, 255, torch.uint8)
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(scores, *scheme), *scheme)


def test_values_beyond_the_range_excuse_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 16)
    program = capture(Masked().eval(), x)
    without = program.copy()
    drop_quantizers(without)
    model = lower(program)
    integer_bound(without, program, model, [x])
    with pytest.raises(ProofError, match="no tie explains it"):
        integer_bound(without, program, with_tensor(model, "q.bias", lambda bias: bias * 1.05), [x])
