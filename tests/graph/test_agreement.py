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


def test_random_programs_are_recognised(program: Program) -> None:
    assert not agreement.is_random(program), "a dropout in evaluation mode draws nothing"
    assert agreement.is_random(program.train())
    assert agreement.is_random(capture(Apply(lambda m, x: m.conv(x) + torch.randn_like(x)).eval(), image()))
