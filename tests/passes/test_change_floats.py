"""Shorter floats: before and after, what does not fit, and who overflows."""

from __future__ import annotations

from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import InputError, NotSupported
from fxcompress.graph.capture import capture
from fxcompress.graph.wellformed import well_formed
from fxcompress.lowering.lower import lower
from fxcompress.passes.change_floats import ChangeFloats, overflow
from fxcompress.passes.quantize_dynamically import QuantizeDynamically
from fxcompress.proof.parity import parity_at_sizes
from tests.passes.models import Apply, Chain
from tests.passes.test_quantize_tensors import structure

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))


def test_weights_are_stored_short_and_read_long() -> None:
    program = capture(Chain(a=nn.Linear(64, 32), r=nn.ReLU()).eval(), X)
    outcome = ChangeFloats("float16").run(program)
    well_formed(outcome.program)
    assert structure(outcome.program) == dedent("""\
        a_weight_float = to(a_weight)
        linear = linear(x, a_weight_float, a_bias)
        relu = relu(linear)""")
    assert {name: value.dtype for name, value in outcome.program.module.state_dict().items()} == {
        "a.weight": torch.float16,
        "a.bias": torch.float32,  # too short to matter
    }


def test_everything_between_inputs_and_outputs_is_computed_short() -> None:
    program = capture(Chain(a=nn.Linear(64, 32), r=nn.ReLU()).eval(), X)
    after = ChangeFloats("bfloat16", "all").run(program).program
    assert structure(after) == dedent("""\
        x_short = to(x)
        linear = linear(x_short, a_weight, a_bias)
        relu = relu(linear)
        relu_float = to(relu)""")
    with torch.no_grad():
        assert after(X).dtype == torch.float32
        torch.testing.assert_close(after(X), program(X), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_weights_halve_the_file_and_are_read_exactly(dtype: str) -> None:
    program = capture(Chain(a=nn.Linear(64, 512), r=nn.ReLU(), b=nn.Linear(512, 64)).eval(), X)
    after = ChangeFloats(dtype).run(program).program
    model = lower(after)
    assert model.ByteSize() < 0.55 * lower(program).ByteSize()
    found = parity_at_sizes(after, model)
    assert found.bound < 1e-4  # float32's: a stored type that is short rounds nothing on the way


def test_a_weight_beyond_the_range_stays_or_is_refused() -> None:
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight[0, 0] = 1e5
    program = capture(Chain(a=layer).eval(), X)
    outcome = ChangeFloats("float16").run(program)
    assert outcome.program is program
    assert outcome.declined[0].site == "a.weight"
    with pytest.raises(NotSupported, match=r"a\.weight holds numbers beyond float16"):
        ChangeFloats("float16", "all").run(program)
    assert ChangeFloats("bfloat16").run(program).changed


def squared(m: nn.Module, x: Tensor) -> Tensor:
    return m.b((m.a(x) * 300).square().mean(-1, keepdim=True).sqrt() * x)


def test_the_operator_that_overflows_is_named() -> None:
    program = capture(Apply(squared, a=nn.Linear(64, 32), b=nn.Linear(64, 8)).eval(), X)
    short = ChangeFloats("float16", "all").run(program).program
    found = overflow(program, short, [[X]])
    assert found is not None
    assert found.name in ("pow_1", "square")
    assert overflow(program, short, [[X * 1e-3]]) is None
    assert overflow(program, ChangeFloats("bfloat16", "all").run(program).program, [[X]]) is None


def test_the_low_end_of_float32_in_a_mask_is_no_overflow() -> None:
    lowest = torch.finfo(torch.float32).min

    def masked(m: nn.Module, x: Tensor) -> Tensor:
        return torch.softmax(m.a(x).masked_fill(x > 1, lowest), -1)

    program = capture(Apply(masked, a=nn.Linear(64, 64)).eval(), X)
    short = ChangeFloats("float16", "all").run(program).program
    assert overflow(program, short, [[X]]) is None
    with torch.no_grad():
        torch.testing.assert_close(short(X), program(X), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"dtype": "float8"}, {"what": "some"}])
def test_options_are_checked(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError):
        ChangeFloats(**wrong)


def test_a_program_with_integers_is_not_computed_short() -> None:
    program = capture(Chain(a=nn.Linear(64, 64)).eval(), X)
    with pytest.raises(NotSupported, match="quantized values"):
        ChangeFloats("float16", "all").run(QuantizeDynamically().run(program).program)
