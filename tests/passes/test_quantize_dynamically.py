"""Run-time quantization: before and after, what it leaves, its integers, and what the runtime makes of it."""

from __future__ import annotations

from textwrap import dedent

import torch
from torch import Tensor, nn

from fxcompress.graph.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.runtime.inspection import executed
from tests.passes.models import Apply, Chain
from tests.passes.test_quantize_tensors import structure

TOKENS = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


def two_of_one() -> nn.Module:
    return Apply(
        lambda m, x: m.a(x) + m.b(x).tanh(), a=nn.Linear(64, 64), b=nn.Linear(64, 64, bias=False)
    ).eval()


def test_before_and_after() -> None:
    before = capture(two_of_one(), TOKENS)
    outcome = QuantizeDynamically().run(before)
    well_formed(outcome.program)
    assert structure(outcome.program) == dedent("""\
        x_range = choose_qparams(x)
        x_step = getitem(x_range)
        x_zero = getitem(x_range)
        x_q = quantize_per_tensor(x, x_step, x_zero)
        x_dq = dequantize_per_tensor(x_q, x_step, x_zero)
        a_weight_int8_dq = dequantize_per_channel(a_weight_int8, a_weight_scale, a_weight_zero_point)
        linear = linear(x_dq, a_weight_int8_dq, a_bias)
        b_weight_int8_dq = dequantize_per_channel(b_weight_int8, b_weight_scale, b_weight_zero_point)
        linear_1 = linear(x_dq, b_weight_int8_dq)
        tanh = tanh(linear_1)
        add = add(linear, tanh)""")
    assert structure(before).startswith("linear = linear(x, a_weight, a_bias)")


def test_what_stays_in_float_has_a_reason() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(80, 64)
            self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 80, bias=False)
            self.head.weight = self.table.weight
            self.small, self.named = nn.Linear(80, 4), nn.Linear(80, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.head(self.first(self.table(x)))
            return self.small(y), self.named(y) @ self.named(y).mT

    program = capture(Model().eval(), torch.randint(0, 80, (2, 5)))
    outcome = QuantizeDynamically(exclude=("named*",)).run(program)
    assert outcome.changed == ("linear reads first.weight as int8",)
    reasons = {item.site: item.reason for item in outcome.declined}
    assert "also read by embedding" in reasons["linear_1"]
    assert "fewer than the 4096 that pay" in reasons["linear_2"]
    assert reasons["linear_3"] == "excluded by name"
    assert reasons["matmul"] == "its weight is computed, not stored"


def test_convolutions_are_left_and_nothing_else_changes() -> None:
    program = capture(Chain(c=nn.Conv2d(3, 64, 3), d=nn.Conv2d(64, 8, 3)).eval(), torch.randn(2, 3, 8, 8))
    outcome = QuantizeDynamically().run(program)
    assert outcome.program is program
    assert ["ConvInteger" in item.reason for item in outcome.declined] == [True, True]


def test_the_error_is_that_of_eight_bits() -> None:
    before = capture(two_of_one(), TOKENS)
    after = QuantizeDynamically().run(before).program
    for scale in (1e-3, 1.0, 1e3):  # ranges follow the input: nothing was calibrated
        with torch.no_grad():
            wanted, found = before(TOKENS * scale), after(TOKENS * scale)
        assert float((wanted - found).norm() / wanted.norm()) < 0.02


def test_a_stored_program_comes_back_and_is_fused(tmp_path) -> None:
    after = QuantizeDynamically().run(capture(two_of_one(), TOKENS)).program
    after.save(tmp_path / "p.fxc")
    again = load(tmp_path / "p.fxc")
    with torch.no_grad():
        assert torch.equal(again(TOKENS), after(TOKENS))
    kinds = [item.op_type for item in executed(lower(again))]
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert kinds.count("DynamicQuantizeLinear") == 1
    assert "MatMul" not in kinds


def test_products_of_gpt2_are_stored_the_other_way_round() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    program = capture(
        Apply(lambda m, x: torch.addmm(m.b, x, m.w), b=torch.randn(96), w=weight).eval(), TOKENS[0]
    )
    after = QuantizeDynamically().run(program).program
    assert after.module.state_dict()["w_scale"].shape == (96,)
    with torch.no_grad():
        wanted, found = program(TOKENS[0]), after(TOKENS[0])
    assert float((wanted - found).norm() / wanted.norm()) < 0.02
    assert [item.op_type for item in executed(lower(after))] == ["DynamicQuantizeMatMul"]
