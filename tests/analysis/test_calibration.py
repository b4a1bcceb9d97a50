"""Calibration streams: the ranges are those of all batches, the memory those of one, the errors say where."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis.calibration import calibrate
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.numerics.ranges import Range
from tests.passes.models import Apply, Chain


@pytest.fixture
def program() -> Program:
    return capture(Chain(c=nn.Conv2d(2, 3, 3), r=nn.ReLU()), (torch.randn(2, 2, 5, 5),))


def test_ranges_are_those_of_all_batches(program):
    data = [torch.randn(n, 2, 5, 5) for n in (1, 4, 2)]
    ranges = calibrate(program, data, ["x", "relu"])
    every = torch.cat(data)
    assert ranges["x"] == Range(every.min().item(), every.max().item())
    with torch.no_grad():
        high = max(program(batch).max().item() for batch in data)
    assert ranges["relu"] == Range(0.0, high)


def test_batches_may_carry_labels(program):
    pair = (torch.randn(2, 2, 5, 5), torch.tensor([0, 1]))
    assert calibrate(program, [pair], ["x"])["x"].high == pair[0].max().item()


def test_one_batch_is_alive_at_a_time(program):
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[Tensor]:
        nonlocal most
        for _ in range(6):
            most = max(most, sum(ref() is not None for ref in alive))
            batch = torch.randn(2, 2, 5, 5)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    calibrate(program, stream(), ["x", "conv2d", "relu"])
    assert most <= 1


def test_progress_is_told_after_each_batch(program):
    told: list[int] = []
    calibrate(program, [torch.randn(1, 2, 5, 5)] * 3, ["x"], progress=told.append)
    assert told == [1, 2, 3]


def test_a_program_in_training_mode_is_measured_in_evaluation_mode():
    model = Chain(b=nn.BatchNorm2d(2), d=nn.Dropout(0.9)).eval()
    program = capture(model, (torch.randn(4, 2, 3, 3),))
    program.train()
    before = {name: value.clone() for name, value in program.module.state_dict().items()}
    data = [torch.randn(4, 2, 3, 3) * 9]
    first, second = (calibrate(program, data, ["batch_norm"]) for _ in range(2))
    assert first == second
    assert program.training
    for name, value in program.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_no_batch_is_an_error(program):
    with pytest.raises(InputError, match="calibration"):
        calibrate(program, [], ["x"])
    used = iter([torch.randn(1, 2, 5, 5)])
    next(used)
    with pytest.raises(InputError, match="calibration"):
        calibrate(program, used, ["x"])


def test_a_nan_in_the_data_names_the_batch(program):
    bad = torch.randn(2, 2, 5, 5)
    bad[1, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN") as caught:
        calibrate(program, [torch.randn(2, 2, 5, 5), bad], ["x"])
    assert "batch 1" in str(caught.value)


def test_a_nan_that_the_model_makes_names_the_node_the_line_and_the_batch():
    program = capture(Apply(lambda model, x: torch.log(x) * 2), (torch.rand(2, 3) + 1,))
    with pytest.raises(InputError) as caught:
        calibrate(program, [torch.ones(2, 3), -torch.ones(2, 3)], ["log"])
    text = str(caught.value)
    assert "log holds a NaN" in text
    assert "batch 1" in text
    assert "source: models.py" in text


def test_a_tensor_the_program_does_not_have_is_an_error(program):
    with pytest.raises(InputError, match="no tensor 'nowhere'"):
        calibrate(program, [torch.randn(2, 2, 5, 5)], ["x", "nowhere"])
