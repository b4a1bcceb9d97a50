"""From a model to its quantization plan and quantized program, for the tests of every stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxcompress.analysis.calibration import calibrate
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.passes.remove_identities import RemoveIdentities
from fxcompress.plan.placement import Placement, place
from fxcompress.plan.quantization import plan_quantization, tensors_to_observe
from fxcompress.plan.quantization_plan import QuantizationPlan, Quantize
from fxcompress.targets.onnxruntime import onnxruntime

VNNI = onnxruntime({"avx512f", "avx512_vnni"})


def placed(model: nn.Module, example: Any, *exclude: str) -> Placement:
    """Where the integers of a model go."""
    return place(capture(model.eval(), example), VNNI, exclude)


def planned(program: Program, options: Quantize | None = None, target=VNNI) -> QuantizationPlan:
    """The plan of a program, calibrated on its own example."""
    ranges = calibrate(program, [program.example.args], tensors_to_observe(program, target, options))
    return plan_quantization(program, ranges, target, options)


def quantized(model: nn.Module, example: Any, **options: Any) -> tuple[Program, QuantizationPlan, Program]:
    """The float program, its plan, the int8 program."""
    torch.manual_seed(0)
    program = RemoveIdentities().run(capture(model.eval(), example)).program
    plan = planned(program, **options)
    return program, plan, QuantizeTensors(plan).run(program).program
