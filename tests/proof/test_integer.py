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
from fxcompress.proof import integer as module
from fxcompress.proof.integer import integer_bound
from fxcompress.runtime.inspection import executed
from tests.proof.artefacts import inputs, int8, plain, quantized, with_edge, with_own_tensor, with_tensor

QUANTIZERS = 5


def prove(model: onnx.ModelProto) -> module.IntegerBound:
    return integer_bound(plain()[0], int8()[0], model, [inputs()])


def swapped(values: np.ndarray) -> np.ndarray:
    values[[0, 1]] = values[[1, 0]]
    return values


def test_the_lowered_program_passes() -> None:
    bound = prove(int8()[1])
    assert bound.quantizers == QUANTIZERS
    assert bound.off_by_one < 1e-3
    assert bound.error < bound.bound
    assert bound.output in {"logits", "best"}


def test_the_file_really_computes_in_integers() -> None:
    operators = [operator.op_type for operator in executed(int8()[1]) if operator.integer]
    assert operators.count("QLinearConv") == 2
    assert "QLinearAdd" in operators
    assert "QLinearGlobalAveragePool" in operators
    assert "QGemm" in operators


def weight_reader(model: onnx.ModelProto, name: str) -> str:
    return next(node.name for node in model.graph.node if node.input[0] == name)


@pytest.mark.parametrize(
    "breakage",
    [
        lambda model: with_own_tensor(
            model, weight_reader(model, "second_weight"), 1, lambda scale: scale * 1.05
        ),
        lambda model: with_tensor(model, "second_weight", swapped),
        lambda model: with_tensor(model, "head_weight", swapped),
        lambda model: with_tensor(model, "first_bias", lambda bias: bias + 3000),
        lambda model: with_edge(model, "add", 1, "dequantize_per_tensor_2"),
        lambda model: with_own_tensor(model, "dequantize_per_tensor_1", 2, lambda zero: zero + 3),
        lambda model: with_own_tensor(model, "quantize_per_tensor_2", 2, lambda zero: zero - 2),
        lambda model: with_own_tensor(model, "quantize_per_tensor_3", 1, lambda scale: scale * 1.02),
    ],
    ids=[
        *("scaled weight", "swapped channels", "swapped classes", "wrong bias", "moved edge"),
        *("wrong zero point of a DQ", "wrong zero point of a Q", "wrong scale of a Q"),
    ],
)
def test_a_broken_file_is_caught(breakage: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    with pytest.raises(ProofError):
        prove(breakage(int8()[1]))


def test_the_operator_at_fault_is_named_and_those_after_it_are_not() -> None:
    broken = with_tensor(int8()[1], "first_weight", swapped)
    with pytest.raises(ProofError, match="quantize_per_tensor_1 is up to") as caught:
        prove(broken)
    assert caught.value.node is not None
    assert "aten.relu" in caught.value.node
    assert caught.value.source is not None
    assert "artefacts.py" in caught.value.source


def test_a_quantization_that_is_not_in_the_file_is_caught() -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(int8()[1])
    for node in broken.graph.node:
        node.output[:] = ["renamed" if name == "quantize_per_tensor_3" else name for name in node.output]
        node.input[:] = ["renamed" if name == "quantize_per_tensor_3" else name for name in node.input]
        node.name = node.name.replace("quantize_per_tensor_3", "renamed/x")
    with pytest.raises(ProofError, match="not in the ONNX file"):
        prove(broken)


class Twins(nn.Module):
    """Two equal quantizations, of which the file has one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scheme = (0.02, 128, 0, 255, torch.uint8)
        pairs = [
            quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *scheme), *scheme) for _ in "ab"
        ]
        return pairs[0] + 2 * pairs[1]


def test_a_quantization_merged_with_an_equal_one_is_judged_as_that_one() -> None:
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    program = capture(Twins().eval(), x)
    model = lower(program)
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    assert integer_bound(program, program, model, [x]).quantizers == 2


def test_the_network_is_judged_operator_by_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """An early step more or less is not carried on: the session's integers are what later operators see."""
    seen: list[bool] = []
    original = module._Follower.after

    def after(self: module._Follower, node: torch.fx.Node, value: object) -> object:
        result = original(self, node, value)
        if node.name in self.inner:
            seen.append(np.array_equal(result.numpy(), self.inner[node.name]))
        return result

    monkeypatch.setattr(module._Follower, "after", after)
    prove(int8()[1])
    assert len(seen) == 2 * QUANTIZERS
    assert all(seen)


def test_an_end_to_end_fault_of_the_optimised_session_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.outputs_of

    def shifted(*args: object, **kwargs: object) -> list[np.ndarray]:
        outputs = original(*args, **kwargs)  # type: ignore[arg-type]
        return [outputs[0] + 0.1, *outputs[1:]]

    monkeypatch.setattr(module, "outputs_of", shifted)
    with pytest.raises(ProofError, match="quantization itself costs"):
        prove(int8()[1])


def test_the_allowance_is_half_of_the_quantization_error() -> None:
    bound = prove(int8()[1])
    with torch.no_grad():
        cost = (int8()[0](inputs())["logits"] - plain()[0](inputs())["logits"]).norm().item()
        size = int8()[0](inputs())["logits"].norm().item()
    if bound.output == "logits":
        assert cost / 2 <= bound.bound <= cost / 2 + 0.01 * size
