"""The bound of run-time quantization and of weights in blocks; each fault of a file must be seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ProofError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower
from fxcompress.passes.change_floats import ChangeFloats
from fxcompress.passes.contract import Pass
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.passes.quantize_weights import QuantizeWeights
from fxcompress.proof import products
from fxcompress.proof.halves import half_bound
from fxcompress.proof.products import product_bound
from fxcompress.proof.ties import Flips
from tests.passes.models import Apply
from tests.proof.artefacts import with_tensor

TOKENS = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
DYNAMIC = QuantizeDynamically()
INT4, INT8 = QuantizeWeights(bits=4), QuantizeWeights(bits=8)
ROUNDED = QuantizeWeights(bits=4, activations="int8")


def block(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x + m.down(nn.functional.gelu(m.up(x))))
    return m.left(y) * m.right(y).sigmoid()


@cache
def plain() -> Program:
    torch.manual_seed(0)
    parts = {
        "up": nn.Linear(64, 128),
        "down": nn.Linear(128, 64, bias=False),
        "norm": nn.LayerNorm(64),
        "left": nn.Linear(64, 64),
        "right": nn.Linear(64, 64),
    }
    return capture(Apply(block, **parts).eval(), TOKENS)


@cache
def artefact(stage: Pass) -> tuple[Program, onnx.ModelProto]:
    program = stage.run(plain()).program
    return program, lower(program)


@pytest.mark.parametrize("stage", [DYNAMIC, INT4, INT8, ROUNDED])
def test_the_lowered_program_passes(stage: Pass) -> None:
    bound = product_bound(plain(), *artefact(stage), [TOKENS])
    assert bound.products == 4
    assert bound.closest < 0.5
    assert bound.error < 0.01 * bound.bound


def first_row(values: np.ndarray) -> np.ndarray:
    values[0] = values[0] * 1.01
    return values


def swapped(values: np.ndarray) -> np.ndarray:
    values[[0, 1]] = values[[1, 0]]
    return values


def nibbles(values: np.ndarray) -> np.ndarray:
    return (values >> 4) | ((values & 15) << 4)


def with_level(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    return changed


def tensor(
    part: str, change: Callable[[np.ndarray], np.ndarray]
) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Change the one stored tensor whose name has a part."""

    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        (name,) = (item.name for item in model.graph.initializer if part in item.name.replace(".", "_"))
        return with_tensor(model, name, change)

    return broken


@pytest.mark.parametrize(
    ("stage", "breakage"),
    [
        (DYNAMIC, tensor("down_weight_scale", lambda values: values * 1.01)),
        (DYNAMIC, tensor("left_weight_int8_turned", swapped)),
        (DYNAMIC, tensor("up_bias", lambda values: values + 1e-3)),
        (INT4, tensor("up_weight_int4_packed", nibbles)),
        (INT4, tensor("down_weight_int4_scale", first_row)),
        (INT8, tensor("left_weight_int8_packed", swapped)),
        (INT4, lambda model: with_level(model, 4)),
        (ROUNDED, tensor("right_weight_int4_scale", lambda values: values * 1.05)),
        (ROUNDED, tensor("right_weight_int4_packed", swapped)),
    ],
)
def test_a_broken_file_is_caught(stage: Pass, breakage: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    program, model = artefact(stage)
    with pytest.raises(ProofError, match=r"linear|'output'"):
        product_bound(plain(), program, breakage(model), [TOKENS])


def test_a_runtime_that_does_not_round_inputs_is_no_fault() -> None:
    program, model = artefact(ROUNDED)
    product_bound(plain(), program, with_level(model, 1), [TOKENS])


def test_a_file_without_the_products_is_caught() -> None:
    program, _ = artefact(INT4)
    with pytest.raises(ProofError, match="steps|away|not in the ONNX file"):
        product_bound(plain(), program, lower(plain()), [TOKENS])


def test_blocks_that_the_runtime_rounds_otherwise_do_not_widen_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each product alone may be a whole rounding off; together they stay below half of what it costs."""
    program, model = artefact(QuantizeWeights(bits=8, activations="int8"))
    product_bound(plain(), program, model, [TOKENS])
    other = with_level(model, 1)
    for name in ("inner_values", "outputs_of"):
        original = getattr(products, name)
        monkeypatch.setattr(products, name, partial(_swapped, original, other))
    with pytest.raises(ProofError, match="quantization itself costs"):
        product_bound(plain(), program, model, [TOKENS])


def _swapped(
    original: Callable[..., object], other: onnx.ModelProto, model: onnx.ModelProto, *args: object,
    optimize: bool
) -> object:  # fmt: skip
    """The optimising session alone runs another file."""
    return original(other if optimize else model, *args, optimize=optimize)


@pytest.mark.parametrize(("move", "allowed"), [(0.0, True), (0.3, False)])
def test_ties_at_run_time_widen_the_bound(
    move: float, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ties make of the opened session counts; one integer that is off by more, and it does not."""
    program, model = artefact(DYNAMIC)
    seen: list[int] = []
    original, flipped = products.end_to_end, Flips(10, 1, 1, move)
    monkeypatch.setattr(products, "flips", lambda *_: flipped)
    monkeypatch.setattr(products, "end_to_end", lambda *args: seen.append(len(args[-1])) or original(*args))
    product_bound(plain(), program, model, [TOKENS])
    assert seen == [2 if allowed else 1]


def test_half_precision_is_held_to_what_it_costs() -> None:
    program = ChangeFloats("float16", "all").run(plain()).program
    model = lower(program)
    found = half_bound(plain(), program, model, [TOKENS], torch.float16)
    assert found.error < found.bound
    (name,) = (item.name for item in model.graph.initializer if "down" in item.name)
    broken = with_tensor(model, name, lambda values: (values * 1.1).astype(np.float16))
    with pytest.raises(ProofError, match="half precision"):
        half_bound(plain(), program, broken, [TOKENS], torch.float16)
