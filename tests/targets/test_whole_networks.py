"""Whole networks for every target that is not ONNX Runtime: their structure, and the file as written."""

from __future__ import annotations

import pytest
import torch

from fxcompress.analysis.calibration import calibrate
from fxcompress.graph.capture import capture
from fxcompress.lowering.lower import lower
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import plan_quantization, tensors_to_observe
from fxcompress.proof.integer import integer_bound
from fxcompress.proof.structure import structural_faults
from fxcompress.recipes.recipe import LOSSLESS
from fxcompress.targets.catalog import resolve
from tests.architectures.architecture import Architecture
from tests.architectures.catalog import CATALOG

DEFAULT = {"resnet_basic"}


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "portable"])
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(item, id=item.name, marks=() if item.name in DEFAULT else pytest.mark.slow)
        for item in CATALOG
        if item.int8
    ],
)
def test_a_network_stands_as_its_target_reads_it(architecture: Architecture, target: str):
    torch.manual_seed(0)
    described = resolve(target)
    program = capture(architecture.build().eval(), architecture.example())
    program = Journal().apply_all(LOSSLESS, program)
    data = program.example.kwargs or program.example.args
    ranges = calibrate(program, [data], tensors_to_observe(program, described))
    plan = plan_quantization(program, ranges, described)
    assert plan.weights
    quantized = QuantizeTensors(plan).run(program).program
    model = lower(quantized)
    assert structural_faults(model, described) == ()
    integer_bound(program, quantized, model, program.flat_example(), optimize=False)
