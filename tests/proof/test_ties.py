"""Roundings on the border of two integers are told from operators that are wrong by less than a step."""

from __future__ import annotations

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
from fxcompress.proof.ties import TIE, flips
from fxcompress.runtime.inspection import executed
from tests.proof.artefacts import inputs, int8, plain, quantized, with_own_tensor, with_tensor

STEP = 1.0 / 64.0
BYTE = (STEP, 128, 0, 255)
Scheme = tuple[float, int, int, int]


def compared(values: list[float], theirs: list[int], scheme: Scheme = BYTE) -> ties.Flips:
    """Values in steps from the zero point, against the integers of a session."""
    scale, zero, low, high = scheme
    dtype = torch.uint8 if high < 256 else torch.uint16
    value = torch.tensor(values, dtype=torch.float64) * scale
    mine = (value / scale + zero).round().clamp(low, high).to(dtype)
    return flips(value.float(), mine, torch.tensor(theirs).to(dtype), scheme)


def test_equal_integers_have_no_flips() -> None:
    found = compared([1.2, -3.0], [129, 125])
    assert (found.of, found.count, found.steps, found.ties) == (2, 0, 0, True)


@pytest.mark.parametrize(
    ("value", "theirs", "is_tie"),
    [
        (1.499, 130, True),
        (1.501, 129, True),
        (1.45, 130, True),
        (1.43, 130, False),
        (1.6, 129, False),
        (1.0, 130, False),
        (-0.52, 128, True),
        (126.9, 254, False),
    ],
)
def test_a_tie_lies_on_the_border(value: float, theirs: int, is_tie: bool) -> None:
    found = compared([value, 0.0], [theirs, 128])
    assert (found.count, found.steps) == (1, 1)
    assert found.ties == is_tie
    assert found.explained == TIE


def test_a_saturated_value_has_no_border_beyond_the_last_integer() -> None:
    assert compared([300.0, 127.0], [255, 255]).count == 0
    assert not compared([300.0, 127.0], [254, 255]).ties


def test_two_steps_are_no_tie_wherever_the_value_lies() -> None:
    found = compared([1.5], [132])
    assert found.steps == 2
    assert not found.ties
    assert "up to 2 steps" in found.said("q")


def test_steps_finer_than_float32_resolves_are_ties() -> None:
    scheme = (1.0 / 1024.0, 0, 0, 65535)
    assert compared([60000.2], [60001], scheme).ties
    assert not compared([60.2], [61], scheme).ties


def test_what_is_not_a_number_is_no_tie() -> None:
    bytes_ = torch.tensor([[3], [4]], dtype=torch.uint8)
    assert not flips(torch.tensor([float("nan")]), bytes_[0], bytes_[1], BYTE).ties


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
        return quantized.dequantize_per_tensor(
            quantized.quantize_per_tensor(x, *BYTE, torch.uint8), *BYTE, torch.uint8
        )

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
    monkeypatch.setattr(ties, "TIE", 1e-3)
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


@pytest.mark.parametrize("factor", [1.01, 1.004, 0.996])
def test_a_fault_of_less_than_a_step_is_caught(factor: float) -> None:
    """One percent moves no integer by more than one step, and the outputs by less than the bound."""
    program, model = int8()
    reader = next(node.name for node in model.graph.node if node.input[0] == "second_weight")
    broken = with_own_tensor(model, reader, 1, lambda scale: scale * factor)
    with pytest.raises(ProofError, match=r"quantize_per_tensor_2 is one step away[\s\S]*no tie explains it"):
        integer_bound(plain()[0], program, broken, [inputs()])


def test_a_bias_that_is_off_by_less_than_a_step_is_caught() -> None:
    program, model = int8()
    broken = with_tensor(model, "second_bias", lambda bias: bias + 100)
    with pytest.raises(ProofError, match="no tie explains it"):
        integer_bound(plain()[0], program, broken, [inputs()])
