"""From a placement and ranges to a plan: the scale and zero point of everything that is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.numerics.affine import (
    BIAS_LIMIT,
    SMALLEST_SCALE,
    asymmetric,
    bias_scales,
    channel_scales,
    fit_bias,
)
from fxcompress.numerics.ranges import Range
from fxcompress.ops.quantization import GATES, activations, role
from fxcompress.plan.eligibility import is_batched, operand
from fxcompress.plan.placement import Placement, place
from fxcompress.plan.quantization_plan import (
    ActivationScheme,
    BiasScheme,
    Declined,
    QuantizationPlan,
    Quantize,
    WeightScheme,
)
from fxcompress.targets.target import Target

__all__ = ["QuantizationPlan", "Quantize", "gate_name", "plan_quantization", "tensors_to_observe"]

GATE_RANGE = Range(0.0, 1.0)
"""Sigmoid and hard sigmoid."""


def tensors_to_observe(program: Program, target: Target, options: Quantize | None = None) -> list[str]:
    """Return the node names whose ranges :func:`plan_quantization` needs: what to pass to `calibrate`."""
    return _placement(program, target, options or Quantize()).roots()


def plan_quantization(
    program: Program, ranges: Mapping[str, Range], target: Target, options: Quantize | None = None
) -> QuantizationPlan:
    """Decide the precision of every operator and the scheme of every quantized tensor.

    `ranges` holds at least :func:`tensors_to_observe`.

    Raises:
        InputError: a range is missing or not finite.
    """
    placement = _placement(program, target, options or Quantize())
    nodes = {node.name: node for node in program.graph.nodes}
    chosen = _activation_schemes(placement, nodes, ranges)
    weights = _weight_schemes(program, placement, nodes, chosen, target)
    return QuantizationPlan(
        target=target.name,
        kernels=placement.kernels,
        activations=chosen,
        integer_only=tuple(name for name in placement.tensors if name in placement.integer_only),
        weights={name: _frozen(scheme) for name, scheme in weights.items()},
        biases=_bias_schemes(program, placement, nodes, chosen, weights),
        declined=tuple(
            Declined(node.name, placement.declined[node.name], walk.source(node))
            for node in program.graph.nodes
            if node.name in placement.declined
        ),
    )


def _placement(program: Program, target: Target, options: Quantize) -> Placement:
    """Place with what the user asked for: full precision ignores what the target measured as too slow."""
    chosen = replace(target, narrowest_group=0) if options.precision == "full" else target
    return place(program, chosen, options.exclude)


def gate_name(node: str) -> str:
    """Return the name of the tensor that a self-gated activation multiplies its input with."""
    return f"{node}_gate"


def _activation_schemes(
    placement: Placement, nodes: Mapping[str, fx.Node], ranges: Mapping[str, Range]
) -> dict[str, ActivationScheme]:
    roots = {name: _scheme(name, ranges) for name in placement.roots()}
    chosen: dict[str, ActivationScheme] = {}
    for name, root in placement.tensors.items():
        if name in placement.kernels and nodes[name].target in GATES:
            gate = asymmetric(GATE_RANGE.low, GATE_RANGE.high)
            chosen[gate_name(name)] = ActivationScheme(gate.scale, gate.zero_point)
        scheme = roots[root]
        chosen[name] = ActivationScheme(scheme.scale, scheme.zero_point, None if root == name else root)
    return chosen


def _scheme(name: str, ranges: Mapping[str, Range]) -> ActivationScheme:
    if name not in ranges:
        raise InputError(f"there is no range for {name}", hint="calibrate the tensors of tensors_to_observe")
    if not ranges[name].finite:
        raise InputError(f"the range of {name} is {ranges[name]}", hint="look at the calibration data")
    affine = asymmetric(ranges[name].low, ranges[name].high)
    return ActivationScheme(affine.scale, affine.zero_point)


class _Scales:
    """The scales of one weight while its readers are looked at."""

    def __init__(self, axis: int, limit: int, scales: Tensor) -> None:
        self.axis, self.limit, self.scales = axis, limit, scales


def _weight_schemes(
    program: Program,
    placement: Placement,
    nodes: Mapping[str, fx.Node],
    chosen: Mapping[str, ActivationScheme],
    target: Target,
) -> dict[str, _Scales]:
    """Return one scheme per weight, wide enough for the biases of all its readers."""
    schemes: dict[str, _Scales] = {}
    for name in placement.contractions:
        node = nodes[name]
        weight, bias, source = _operands(node)
        values = walk.tensor(program, weight)
        key = str(weight.target)
        if key not in schemes:
            axis = _channel_axis(node, values.dim())
            schemes[key] = _Scales(
                axis, target.weight_limit, channel_scales(values, axis, target.weight_limit)
            )
        if bias is not None and _has_integer_bias(node):
            scheme = schemes[key]
            scheme.scales = fit_bias(scheme.scales, walk.tensor(program, bias), chosen[source.name].scale)
    return schemes


def _bias_schemes(
    program: Program,
    placement: Placement,
    nodes: Mapping[str, fx.Node],
    chosen: Mapping[str, ActivationScheme],
    weights: Mapping[str, _Scales],
) -> dict[str, BiasScheme]:
    schemes: dict[str, BiasScheme] = {}
    for name in placement.contractions:
        weight, bias, source = _operands(nodes[name])
        if bias is not None and _has_integer_bias(nodes[name]):
            scales = bias_scales(chosen[source.name].scale, weights[str(weight.target)].scales)
            schemes[name] = BiasScheme(str(bias.target), _tuple(scales))
    for name in placement.guarded:
        schemes[name] = _guard(program, nodes[name])
    return schemes


def _guard(program: Program, node: fx.Node) -> BiasScheme:
    """Return a bias in 31 bits, finer than the float it replaces: all that matters is that it is dequantized.

    ONNX Runtime quantizes the weight of a float operator between DQ and Q unless its bias comes out of a
    node.
    """
    bias = _operands(node)[1]
    channels = walk.hint_shape(node)[-1 if walk.value(node).dim() == 2 else 1]
    largest = torch.ones(channels) if bias is None else walk.tensor(program, bias).detach().abs()
    scales = (largest.double() / BIAS_LIMIT).to(torch.float32).clamp(min=SMALLEST_SCALE)
    return BiasScheme(None if bias is None else str(bias.target), _tuple(scales))


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node | None, fx.Node]:
    """Return the weight, the bias and the input of a contraction."""
    row = role(node)
    assert row is not None
    weight = operand(node, row.weight)
    assert weight is not None
    return weight, operand(node, row.bias), activations(node, row)[0]


def _has_integer_bias(node: fx.Node) -> bool:
    row = role(node)
    return row is not None and not is_batched(node, row)


def _channel_axis(node: fx.Node, rank: int) -> int:
    row = role(node)
    assert row is not None
    return row.axis % rank


def _frozen(scheme: _Scales) -> WeightScheme:
    return WeightScheme(scheme.axis, scheme.limit, _tuple(scheme.scales))


def _tuple(scales: Tensor) -> tuple[float, ...]:
    return tuple(scales.detach().double().tolist())
