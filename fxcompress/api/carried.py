"""The quantization that a model came with: which operators can run in integers with it, which stay in float.

Its scales are the user's, so nothing is decided of them here: the plan says what was found. Float biases
stay, but where a linear of three dimensions has a stored one, ONNX Runtime makes a float Gemm of both before
it looks for integers: 15.4 ms instead of 1.6 for 384 x 1536 and back, 196 rows, on one core. There the bias
becomes int32 in the unit of the accumulator, as the kernel adds it, unless that would change it. (In any
other unit, however fine, the kernel takes it for the accumulator's: the outputs are wrong.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from fxcompress.api.candidates import BARE, Candidate
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import (
    DEQUANTIZE,
    DEQUANTIZE_AT_RUN_TIME,
    DEQUANTIZE_CHANNELS,
    is_quantized,
    sign_activations,
)
from fxcompress.graph.rectifiers import clamp_in_front
from fxcompress.numerics.affine import BIAS_LIMIT, bias_scales
from fxcompress.ops.quantization import Kind, Role, activations, role
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal
from fxcompress.plan.eligibility import is_batched, operand
from fxcompress.plan.quantization_plan import BiasScheme, Declined, QuantizationPlan
from fxcompress.proof.structure import structural_faults
from fxcompress.runtime.timing import Comparison
from fxcompress.targets.target import Target

LISTED = 4
COARSE = 1e-3
"""The largest unit of an integer bias, relative to its largest value; half of one is rounded away."""
AT_RUN_TIME = "DynamicQuantizeMatMul"
"""The kernel of a linear whose input finds its scale in every call."""


def carried_plan(program: Program, target: Target) -> QuantizationPlan | None:
    """The precision of every convolution and linear of a program with Q/DQ pairs; None without any."""
    if not is_quantized(program):
        return None
    guards = target.runtime == "onnxruntime"
    kernels: dict[str, str] = {}
    biases: dict[str, BiasScheme] = {}
    declined: list[Declined] = []
    for node in program.graph.nodes:
        row = role(node)
        if row is None or row.weight is None or row.kind not in (*target.kernels, *target.float_reasons):
            continue
        fault = _fault(node, row, target)
        if fault is None:
            kernel = target.kernel(row.kind, batched=is_batched(node, row))
            dynamic = _read(node, row).target is DEQUANTIZE_AT_RUN_TIME
            kernels[node.name] = AT_RUN_TIME if dynamic else kernel.name
            if guards and not dynamic and (scheme := _bias(program, node, row)) is not None:
                biases[node.name] = scheme
        else:
            declined.append(Declined(node.name, fault, walk.source(node)))
    return QuantizationPlan(target.name, kernels, biases=biases, declined=tuple(declined))


def settled(program: Program, plan: QuantizationPlan, target: Target, journal: Journal) -> Program:
    """The program with the biases of the plan, and with its activations in the type that the target reads."""
    if plan.biases:
        program = journal.apply(QuantizeTensors(plan), program)
    if target.runtime == "onnxruntime" and target.activations.dtype == "uint8":
        return program
    program = program.copy()
    if target.activations.dtype == "int8":
        sign_activations(program)
    if target.runtime != "onnxruntime":
        clamp_in_front(program)
    return program


def _bias(program: Program, node: fx.Node, row: Role) -> BiasScheme | None:
    """An int32 bias in the unit of the accumulator; None where it stays, as where that unit is too coarse."""
    weight, bias = operand(node, row.weight), operand(node, row.bias)
    if row.kind is not Kind.LINEAR or walk.value(node).dim() < 3 or bias is None or bias.op != "get_attr":
        return None
    values = walk.tensor(program, bias).detach()
    assert weight is not None
    arguments: tuple[Any, ...] = weight.args
    by_channel = isinstance(arguments[1], fx.Node)
    if values.dim() != 1 or not values.is_floating_point() or (by_channel and arguments[3] != 0):
        return None
    stored = walk.tensor(program, arguments[1]) if by_channel else torch.tensor([arguments[1]])
    scale: Any = _read(node, row).args[1]
    scales = bias_scales(scale, stored.to(torch.float32))
    coarse = bool(scales.max() > COARSE * values.abs().max())
    if coarse or bool((values.abs() > scales * BIAS_LIMIT).any()):
        return None
    return BiasScheme(str(bias.target), tuple(scales.double().tolist()))


def _fault(node: fx.Node, row: Role, target: Target) -> str | None:
    """Why an operator stays in float."""
    weight = operand(node, row.weight)
    if row.kind not in target.kernels:
        return target.float_reasons.get(row.kind, "no integer kernel")
    if weight is None or weight.target not in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
        return "the model does not quantize its weight, or with zero points of channels"
    source = _read(node, row)
    if source.target is DEQUANTIZE_AT_RUN_TIME:
        return None if row.kind is Kind.LINEAR else "the scale of its input is found at run time"
    if source.target is not DEQUANTIZE:
        return "the model does not quantize its input"
    writes = target.kernel(row.kind, batched=is_batched(node, row)).writes_integers
    if writes and not any("quantize_per_tensor" in str(user.target) for user in _after_rectifier(node)):
        return "the model does not quantize its output, and the integer kernel writes integers only"
    return None


def _read(reader: fx.Node, row: Role) -> fx.Node:
    """What an operator reads, behind layout, which moves values and so keeps their scale."""
    node = activations(reader, row)[0]
    while (before := role(node)) is not None and before.kind is Kind.LAYOUT:
        node = activations(node, before)[0]
    return node


def _after_rectifier(node: fx.Node) -> list[fx.Node]:
    """The readers of an operator, and those of a rectifier behind it."""
    readers = list(node.users)
    return readers + [last for reader in readers for last in reader.users]


def carried_notes(plan: QuantizationPlan | None) -> tuple[str, ...]:
    """What to say of operators that stay in float although the model was prepared for integers."""
    if plan is None or not plan.declined:
        return ()
    shown = "; ".join(f"{item.node}: {item.reason}" for item in plan.declined[:LISTED])
    more = f"; and {len(plan.declined) - LISTED} more" if len(plan.declined) > LISTED else ""
    return (f"of the model's own quantization, these operators stay in float: {shown}{more}",)


def carried_remarks(
    target: Target, plan: QuantizationPlan | None, winner: Candidate, times: Comparison
) -> Iterator[str]:
    """What there is to say of a model's own quantization once the file is there and was timed."""
    if plan is None:
        return
    if target.timed:
        if times.slower(winner.name, BARE):
            ratio = times.ratio(winner.name, BARE).value
            said = "the model's own quantization does not pay here"
            yield f"{said}: the file takes {ratio:.2f} times as long with it"
        return
    if AT_RUN_TIME in plan.kernels.values() and "int8-dynamic" in target.refused:
        yield f"the model finds scales at run time: {target.refused['int8-dynamic']}"
    faults = structural_faults(winner.model, target)
    if faults:
        more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        yield (
            f"the model's own quantization is not what {target.name} runs in integers: "
            f"{'; '.join(faults[:LISTED])}{more}; train for {target.name}, or pass the float model"
        )
