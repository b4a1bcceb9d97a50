"""Weights in blocks: before and after, what does not divide, GPTQ, and what the runtime makes of it."""

from __future__ import annotations

from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.quantize_weights import QuantizeWeights
from fxcompress.proof.parity import parity_at_sizes
from fxcompress.runtime.inspection import executed
from tests.passes.models import Apply
from tests.passes.test_quantize_tensors import structure

TOKENS = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


def model(inner: int = 64) -> nn.Module:
    return Apply(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(inner, 64), b=nn.Linear(64, 96)).eval()


def test_before_and_after() -> None:
    outcome = QuantizeWeights(bits=4).run(capture(model(), TOKENS))
    well_formed(outcome.program)
    assert structure(outcome.program) == dedent("""\
        a_weight_int4_dq = dequantize_per_channel_group(a_weight_int4, a_weight_int4_scale)
        linear = linear(x, a_weight_int4_dq, a_bias)
        relu = relu(linear)
        b_weight_int4_dq = dequantize_per_channel_group(b_weight_int4, b_weight_int4_scale)
        linear_1 = linear(relu, b_weight_int4_dq, b_bias)""")
    assert outcome.changed == (
        "a.weight stored as int4, rounded to the nearest",
        "b.weight stored as int4, rounded to the nearest",
    )


def test_rounded_inputs_are_written_into_the_program() -> None:
    after = QuantizeWeights(bits=8, activations="int8").run(capture(model(), TOKENS)).program
    assert structure(after).splitlines()[:7] == [
        "x_blocks = unflatten(x)",
        "x_range = choose_qparams_per_token(x_blocks)",
        "x_step = getitem(x_range)",
        "x_zero = getitem(x_range)",
        "x_q = quantize_per_token(x_blocks, x_step, x_zero)",
        "x_dq = dequantize_per_token(x_q, x_step, x_zero)",
        "x_rounded = flatten(x_dq)",
    ]


def test_an_inner_size_that_does_not_divide_is_declined() -> None:
    program = capture(model(72), torch.randn(2, 5, 72))
    outcome = QuantizeWeights(bits=4).run(program)
    assert outcome.changed == ("b.weight stored as int4, rounded to the nearest",)
    assert [item.reason for item in outcome.declined] == [
        "its 72 inputs are no multiple of the block size 32"
    ]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_stored_program_comes_back_and_is_packed(tmp_path, bits: int, activations: str) -> None:
    program = capture(model(), TOKENS)
    after = QuantizeWeights(bits, activations=activations).run(program).program
    after.save(tmp_path / "p.fxc")
    again = load(tmp_path / "p.fxc")
    with torch.no_grad():
        assert torch.equal(again(TOKENS), after(TOKENS))
        wanted, found = program(TOKENS), after(TOKENS)
    assert float((wanted - found).norm() / wanted.norm()) < (0.2 if bits == 4 else 0.02)
    written = lower(again)
    assert [item.op_type for item in executed(written)] == ["MatMulNBits", "Relu", "MatMulNBits"]
    levels = {
        attribute.i
        for node in written.graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == {1 if activations == "float" else 4}
    packed = [t for t in written.graph.initializer if t.name.endswith("packed")]
    assert sum(len(t.raw_data) for t in packed) == (64 * 64 + 96 * 64) * bits // 8


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_unpacked_at_load_are_the_same_and_cost_nothing_at_run_time(tmp_path, bits: int) -> None:
    program = capture(model(), TOKENS)
    stage = QuantizeWeights(bits)
    in_products = stage.run(program).program
    at_load = QuantizeWeights(bits, unpack="load", rounded=stage.round(program)).run(program).program
    well_formed(at_load)
    with torch.no_grad():
        assert torch.equal(at_load(TOKENS), in_products(TOKENS))
    at_load.save(tmp_path / "p.fxc")
    again = load(tmp_path / "p.fxc")
    written = lower(again)
    assert [item.op_type for item in executed(written)] == [item.op_type for item in executed(lower(program))]
    stored = [
        len(t.raw_data) for t in written.graph.initializer if "_int" in t.name and "scale" not in t.name
    ]
    assert sum(stored) == (64 * 64 + 96 * 64) * bits // 8
    parity_at_sizes(again, written)


def test_calibration_rounds_for_the_outputs() -> None:
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(12, 64, generator=generator)

    def batch() -> Tensor:
        return torch.randn(8, 5, 12, generator=generator) @ mixing

    program, data, fresh = capture(model(), TOKENS), [batch() for _ in range(8)], batch()
    nearest, better = (QuantizeWeights(bits=4, calibration=given).run(program) for given in (None, data))
    assert better.changed[0].endswith("by GPTQ")
    with torch.no_grad():
        wanted = program(fresh)
        errors = [float((item.program(fresh) - wanted).norm()) for item in (better, nearest)]
    assert errors[0] < 0.75 * errors[1]


def test_calibration_with_a_nan_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        QuantizeWeights(calibration=[TOKENS * float("nan")]).run(capture(model(), TOKENS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 3},
        {"block_size": 24},
        {"block_size": 8},
        {"activations": "int4"},
        {"unpack": "never"},
        {"unpack": "load", "activations": "int8"},
    ],
)
def test_options_are_checked(wrong: dict) -> None:
    with pytest.raises(InputError):
        QuantizeWeights(**wrong)
