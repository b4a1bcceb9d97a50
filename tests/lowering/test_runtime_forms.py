"""Forms of the runtime: packing against a slow twin, and what has no form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import LoweringError
from fxcompress.graph import edit
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.lowering.runtime_forms import pack, runtime_forms
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.passes.quantize_weights import QuantizeWeights
from tests.lowering.graphs import listing
from tests.passes.models import Chain

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


def slow_pack(whole: Tensor, block: int) -> Tensor:
    rows, inner = whole.shape
    packed = torch.zeros(rows, inner // block, block // 2, dtype=torch.uint8)
    for row in range(rows):
        for k in range(inner):
            value = (int(whole[row, k]) + 8) << (4 * (k % 2))
            packed[row, k // block, k % block // 2] += value
    return packed


def test_four_bits_are_packed_like_a_slow_twin() -> None:
    whole = torch.randint(-8, 8, (3, 64), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    assert torch.equal(pack(whole, 16, 4), slow_pack(whole, 16))
    assert torch.equal(pack(whole, 16, 8).flatten(1), (whole.int() + 128).to(torch.uint8))


def test_a_float_program_stays_itself() -> None:
    program = capture(nn.Linear(64, 64).eval(), X)
    assert runtime_forms(program) is program


def test_a_product_in_blocks_is_one_operator() -> None:
    program = QuantizeWeights(bits=4).run(capture(nn.Linear(64, 64).eval(), X)).program
    assert listing(lower(program)) == (
        "output = MatMulNBits<K=64, N=64, accuracy_level=1, bits=4, block_size=32>"
        "(input_1, weight_int4_packed, weight_int4_scale, , , bias)"
    )


def test_a_product_at_run_time_is_a_product_of_integers() -> None:
    program = QuantizeDynamically().run(capture(nn.Linear(64, 64).eval(), X)).program
    operators = [node.op_type for node in lower(program).graph.node]
    assert operators == ["DynamicQuantizeLinear", "MatMulInteger", "Mul", "Cast", "Mul", "Add"]


def test_what_is_no_product_reads_what_the_integers_stand_for() -> None:
    model = Chain(a=nn.Linear(64, 64), b=nn.Linear(64, 64)).eval()
    program = QuantizeDynamically().run(capture(model, X)).program
    real = next(node for node in program.graph.nodes if node.name.endswith("linear_dq"))
    rectified = edit.call_after(real, torch.ops.aten.relu.default, (real,))
    edit.replace_uses(real, rectified, only=set(real.users) - {rectified})
    edit.reinfer(program)
    operators = [node.op_type for node in lower(program).graph.node]
    assert operators.count("MatMulInteger") == 1
    assert operators.count("MatMul") + operators.count("Gemm") == 1


def test_what_has_no_form_is_refused_with_its_node() -> None:
    model = Chain(a=nn.Linear(64, 64), b=nn.Linear(64, 64)).eval()
    program = QuantizeDynamically().run(capture(model, X)).program
    whole = next(node for node in program.graph.nodes if node.name.endswith("linear_q"))
    edit.call_after(whole, torch.ops.aten.relu.default, (whole,))
    with pytest.raises(LoweringError, match="quantized at run time[\\s\\S]*relu"):
        runtime_forms(program)
