"""The check that a captured graph computes what its model does, and that it can fail."""

from __future__ import annotations

import pytest
import torch

from fxcompress.errors import CaptureError, InputError
from fxcompress.graph import agreement, edit
from fxcompress.graph.capture import capture
from fxcompress.graph.dynamic import Dynamic
from fxcompress.graph.program import Example, Program
from tests.graph.models import Apply, SmallNet, image

BATCH = Dynamic(({0: "batch"},))


@pytest.fixture
def program() -> Program:
    return capture(SmallNet().eval(), image(2, 3, 8))


def test_it_accepts_the_model_and_sees_a_scaled_weight(program: Program) -> None:
    model = SmallNet().eval()
    example = Example((image(2, 3, 8),), {})
    sizes: list[int] = []

    def run(variant: Example) -> torch.Tensor:
        sizes.append(variant.args[0].shape[0])
        with torch.no_grad():
            return model(*variant.args)

    agreement.check(run, program, example, BATCH)
    assert sizes == [1, 3]
    edit.set_tensor(program, "fc.weight", program.module.get_parameter("fc.weight") * 1.01)
    with pytest.raises(CaptureError, match="output differs"):
        agreement.check(run, program, example, BATCH)


def test_it_sees_swapped_channels_and_other_shapes(program: Program) -> None:
    expected = program.copy()
    order = torch.tensor([1, 0, *range(2, 8)])
    edit.set_tensor(program, "fc.bias", program.module.get_parameter("fc.bias")[order])
    example = Example((image(2, 3, 8),), {})
    with pytest.raises(CaptureError):
        agreement.check(lambda variant: expected(*variant.args), program, example, BATCH)
    with pytest.raises(CaptureError, match=r"float32\[1, 4\]"):
        agreement.check(lambda variant: expected(*variant.args)[:, :4], program, example, BATCH)


def test_sizes_that_the_model_refuses_are_left_out(program: Program) -> None:
    def run(variant: Example) -> torch.Tensor:
        raise InputError("not this size")

    agreement.check(run, program, Example((image(2, 3, 8),), {}), BATCH)
    assert program.notes[-1].endswith("which refuses the sizes that were tried")


def test_the_examples_own_size_is_tried_where_no_other_goes(program: Program) -> None:
    def run(variant: Example, factor: float = 1.0) -> torch.Tensor:
        if variant.args[0].shape[0] != 2:
            raise InputError("not this size")
        answer: torch.Tensor = program(*variant.args)
        return answer * factor

    example = Example((image(2, 3, 8),), {})
    before = len(program.notes)
    agreement.check(run, program, example, BATCH)
    assert len(program.notes) == before + 1
    assert "at the example's sizes only" in program.notes[-1]
    with pytest.raises(CaptureError, match="output differs"):
        agreement.check(lambda variant: run(variant, 1.01), program, example, BATCH)


def test_random_programs_are_recognised(program: Program) -> None:
    assert not agreement.is_random(program), "a dropout in evaluation mode draws nothing"
    assert agreement.is_random(program.train())
    assert agreement.is_random(capture(Apply(lambda m, x: m.conv(x) + torch.randn_like(x)).eval(), image()))


def test_a_weight_that_is_off_by_a_few_parts_in_a_hundred_thousand(program: Program) -> None:
    """Once a part in a thousand was let through, sixteen thousand roundings of float32."""
    expected = program.copy()
    edit.set_tensor(program, "fc.weight", program.module.get_parameter("fc.weight") * 1.00005)
    with pytest.raises(CaptureError, match="output differs"):
        agreement.check(
            lambda variant: expected(*variant.args), program, Example((image(2, 3, 8),), {}), BATCH
        )


def test_a_program_that_amplifies_rounding_is_held_to_its_own() -> None:
    """The model adds in another order, which costs what rounding costs the program itself."""
    program = capture(Apply(lambda m, x: (x + 1e3) - 1e3).eval(), image())
    example = Example((image(),), {})
    agreement.check(lambda variant: variant.args[0], program, example, BATCH)
    with pytest.raises(CaptureError, match="differs"):
        agreement.check(lambda variant: variant.args[0] + 1e-2, program, example, BATCH)


@pytest.mark.parametrize("value", [0.0, float("inf")])
def test_nan_and_other_values_are_not_equal(program: Program, value: float) -> None:
    def run(variant: Example) -> torch.Tensor:
        answer: torch.Tensor = program(*variant.args)
        return torch.full_like(answer, value)

    edit.set_tensor(program, "fc.bias", torch.full((8,), float("nan")))
    with pytest.raises(CaptureError, match="NaN or infinite"):
        agreement.check(run, program, Example((image(2, 3, 8),), {}), BATCH)


def test_integers_must_be_equal() -> None:
    program = capture(Apply(lambda m, x: (x * 0).long() + 100_000).eval(), image())
    example = Example((image(),), {})
    agreement.check(lambda variant: program(*variant.args), program, example, BATCH)
    with pytest.raises(CaptureError, match="int64, differs in"):
        agreement.check(lambda variant: program(*variant.args) + 1, program, example, BATCH)


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recurrent_layers_draw_nothing_in_evaluation_mode(
    layer: type[torch.nn.RNNBase], dropout: float
) -> None:
    model = torch.nn.Sequential(layer(4, 3, num_layers=2, dropout=dropout, batch_first=True)).eval()
    assert not agreement.is_random(capture(model, torch.zeros(2, 5, 4)))
