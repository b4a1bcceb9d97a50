"""Corrections change stored integers only, bring outputs closer on unseen samples, and say what they left."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxcompress.analysis.calibration import calibrate
from fxcompress.analysis.quantized_sites import quantized_sites
from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.correct_biases import CorrectBiases
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.passes.round_adaptively import RoundAdaptively
from fxcompress.plan.quantization import Quantize, plan_quantization, tensors_to_observe
from fxcompress.targets.target import PER_CHANNEL, Scheme
from tests.passes.models import Apply, Chain
from tests.plan.quantized import VNNI

PASSES = [CorrectBiases, RoundAdaptively]
FULL = Quantize(precision="full")
COARSE = Scheme("int8", symmetric=True, bits=7)
"""One scale for a whole weight, and a bit less."""


def batches(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, *shape, generator=generator) for _ in range(count)]


def quantized(
    model: nn.Module, data: list[torch.Tensor], weights: Scheme = PER_CHANNEL
) -> tuple[Program, Program]:
    """The float program and the int8 one; with coarse weights their rounding shows."""
    torch.manual_seed(0)
    program = capture(model.eval(), (data[0],))
    target = replace(VNNI, weights=weights)
    ranges = calibrate(program, data, tensors_to_observe(program, target, FULL))
    plan = plan_quantization(program, ranges, target, FULL)
    return program, QuantizeTensors(plan).run(program).program


def net() -> nn.Module:
    torch.manual_seed(1)
    layers = {"a": nn.Conv2d(3, 12, 3, padding=1), "r": nn.ReLU(), "b": nn.Conv2d(12, 12, 3, groups=12)}
    return Chain(
        **layers, s=nn.ReLU(), c=nn.Conv2d(12, 10, 1), t=nn.ReLU(), f=nn.Flatten(), d=nn.Linear(360, 7)
    )


def distance(one: Program, other: Program, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float((one(batch) - other(batch)).square().sum()) for batch in data)


def integers(program: Program) -> dict[str, torch.Tensor]:
    stored = {str(node.target): walk.tensor(program, node) for node in walk.tensor_nodes(program)}
    return {name: value for name, value in stored.items() if name.endswith(("_int8", "_int32"))}


@pytest.mark.parametrize("make", PASSES, ids=lambda make: make.name)
def test_outputs_come_closer_on_samples_that_were_never_read(make):
    data = batches(12, 3, 8, 8)
    program, int8 = quantized(net(), data, COARSE)
    before = {name: value.clone() for name, value in integers(int8).items()}
    outcome = make(program, data).run(int8)
    well_formed(outcome.program)
    assert outcome.after < outcome.before
    assert outcome.apart
    assert all("of the squared error left" in line for line in outcome.changed)
    unseen = batches(4, 3, 8, 8, seed=9)
    assert distance(program, outcome.program, unseen) < distance(program, int8, unseen)
    assert all(torch.equal(value, before[name]) for name, value in integers(int8).items())


@pytest.mark.parametrize("make", PASSES, ids=lambda make: make.name)
def test_the_graph_scales_and_types_stay(make):
    data = batches(8, 3, 8, 8)
    program, int8 = quantized(net(), data, COARSE)
    found = make(program, data).run(int8).program
    assert str(found.graph) == str(int8.graph)
    for node in walk.tensor_nodes(int8):
        old, new = walk.tensor(int8, node), walk.tensor(found, str(node.target))
        assert old.dtype == new.dtype
        if "int" not in str(node.target) or "scale" in str(node.target):
            assert torch.equal(old, new)
        if str(node.target).endswith("_int8"):
            moved = (old.int() - new.int()).abs()
            assert int(moved.max()) <= (1 if make is RoundAdaptively else 0)


def test_rounding_does_more_than_biases_and_can_leave_them():
    data = batches(12, 3, 8, 8)
    program, int8 = quantized(net(), data, COARSE)
    biases = CorrectBiases(program, data).run(int8)
    both = RoundAdaptively(program, data).run(int8)
    weights = RoundAdaptively(program, data, biases=False).run(int8)
    assert both.after < biases.after
    left = integers(weights.program)
    assert all(
        torch.equal(value, left[name]) for name, value in integers(int8).items() if name.endswith("_int32")
    )
    assert weights.after < weights.before


def test_a_wrong_bias_is_found_and_put_right():
    data = batches(8, 3, 8, 8)
    program, int8 = quantized(net(), data)
    broken = int8.copy()
    bias = walk.tensor(broken, "c.bias_int32")
    edit.set_tensor(broken, "c.bias_int32", bias + 4000)
    outcome = CorrectBiases(program, data).run(broken)
    found = walk.tensor(outcome.program, "c.bias_int32")
    assert int((found - bias).abs().max()) < 400
    assert outcome.after < outcome.before / 10


def test_a_program_without_error_is_returned_as_it_is():
    data = batches(6, 4)
    program = capture(Chain(a=nn.Linear(4, 4), r=nn.ReLU()).eval(), (data[0],))
    outcome = CorrectBiases(program, data).run(program)
    assert outcome.program is program
    assert outcome.changed == ()
    assert any("left out" in item.reason for item in outcome.declined)


def test_one_sample_judges_nothing_and_is_declined():
    data = batches(1, 3, 8, 8)
    program, int8 = quantized(net(), data)
    outcome = CorrectBiases(program, [data[0][:1]]).run(int8)
    assert outcome.program is int8
    assert "one sample" in outcome.declined[0].reason


def test_layers_that_share_or_lack_are_named():
    def shared(m, x):
        return m.b(F.relu(m.a(F.relu(m.a(x)))))

    data = batches(8, 6)
    parts = {"a": nn.Linear(6, 6), "b": nn.Linear(6, 3, bias=False)}
    program, int8 = quantized(Apply(shared, **parts), data)
    found, _ = quantized_sites(program, int8, inputs=True)
    assert [site.weight is None for site in found] == [True, True, False]
    assert [site.bias is None for site in found] == [False, False, True]
    outcome = CorrectBiases(program, data).run(int8)
    assert any("no bias of its own" in item.reason for item in outcome.declined)


def test_a_nan_names_the_layer():
    data = batches(8, 3, 8, 8)
    program, int8 = quantized(net(), data)
    broken = program.copy()
    weight = walk.tensor(broken, "b.weight").detach().clone()
    weight[0] = torch.nan
    edit.set_tensor(broken, "b.weight", weight)
    with pytest.raises(InputError, match="conv2d_1"):
        CorrectBiases(broken, data).run(int8)
