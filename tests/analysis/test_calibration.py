"""Calibration streams: the ranges are those of all batches, the memory those of one, the errors say where."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.analysis.bounds import bounds
from fxcompress.analysis.calibration import _decided, _Observer, calibrate
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.numerics.ranges import ESTIMATORS, MinMax, Range
from tests.numerics.memory import held
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


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_a_rectifier_begins_at_zero_and_a_hard_swish_at_its_minimum(name):
    model = Chain(c=nn.Conv2d(2, 3, 3), r=nn.ReLU(), d=nn.Conv2d(3, 4, 1), h=nn.Hardswish())
    torch.manual_seed(0)
    program = capture(model, (torch.randn(2, 2, 5, 5),))
    with torch.no_grad():
        for parameter in program.module.parameters():
            parameter.mul_(4.0)
    ranges = calibrate(
        program,
        [torch.randn(8, 2, 5, 5) * 4 for _ in range(3)],
        ["relu", "hardswish"],
        estimator=ESTIMATORS[name],
    )
    assert ranges["relu"].low == 0.0
    assert ranges["hardswish"].low == pytest.approx(-0.375, abs=1e-3)
    assert ranges["hardswish"].low >= -0.375


def test_bounds_pass_layout_and_join_zero_where_it_is_padded_in():
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.nn.functional.hardtanh(x, 1.0, 6.0)
            return torch.nn.functional.pad(torch.nn.functional.max_pool2d(y, 2), (1, 1))

    program = capture(Model(), (torch.randn(2, 2, 4, 4),))
    found = {node.name: bounds(node) for node in program.graph.nodes}
    assert found["hardtanh"] == found["max_pool2d"] == Range(1.0, 6.0)
    assert found["pad"] == Range(0.0, 6.0)
    assert not found["x"].finite


def test_a_tensor_that_no_batch_reaches_is_named_with_what_to_do():
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expert = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.expert(x)).sum(0)

    batch = torch.export.Dim("n", min=0, max=64)
    program = capture(Routed(), (torch.randn(4, 3),), dynamic_shapes={"x": {0: batch}})
    observed = _Observer(program, {"relu": MinMax()})
    with torch.no_grad():
        observed.run_flat([torch.empty(0, 3)])
    node = next(node for node in program.graph.nodes if node.name == "relu")
    with pytest.raises(InputError, match="never reaches relu") as caught:
        _decided(node, observed.estimators["relu"], 1)
    assert "exclude" in str(caught.value)
    assert "test_calibration.py" in str(caught.value)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_pain_12_ten_thousand_samples_hold_what_a_hundred_do(program, name):
    """ort#10503 ort#11020: calibration that runs out of memory."""
    made: list[Any] = []

    def estimator() -> Any:
        made.append(ESTIMATORS[name]())
        return made[-1]

    def stream(count: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(count // 100):
            yield torch.randn(100, 2, 5, 5, generator=generator)

    sizes = []
    for count in (100, 10_000):
        made.clear()
        calibrate(program, stream(count), ["x", "relu"], estimator=estimator)
        sizes.append(sum(held(one) for one in made))
    assert sizes[0] == sizes[1]


def test_what_is_padded_with_belongs_to_the_bounds() -> None:
    def padded(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pad(torch.relu(x), (1, 1), value=-1.0), F.pad(torch.relu(x), (1, 1), mode="reflect")

    program = capture(Apply(padded).eval(), torch.randn(2, 3, 5))
    first, second = (node for node in program.graph.nodes if "pad" in node.name)
    assert bounds(first).low == -1.0
    assert bounds(second).low == 0.0
