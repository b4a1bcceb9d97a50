"""From a placement and ranges to a plan: the scale and zero point of everything that is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from types import MappingProxyType

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
    symmetric,
)
from fxcompress.numerics.ranges import Range
from fxcompress.numerics.weight_ranges import mse_channel_scales
from fxcompress.ops.quantization import GATES, Kind, Role, activations, role
from fxcompress.plan.eligibility import is_batched, operand
from fxcompress.plan.operand_schemes import place_in_agreement
from fxcompress.plan.placement import Placement, place, tensors_of
from fxcompress.plan.quantization_plan import (
    ActivationScheme,
    BiasScheme,
    Declined,
    QuantizationPlan,
    Quantize,
    WeightScheme,
)
from fxcompress.plan.reached import reached
from fxcompress.plan.unbounded import UNBOUNDED, unbounded
from fxcompress.targets.target import Scheme, Target, limit_of

__all__ = [
    "QuantizationPlan",
    "Quantize",
    "capable_operators",
    "gate_name",
    "plan_quantization",
    "tensors_of_any_choice",
    "tensors_to_observe",
]

aten = torch.ops.aten

SCALES = MappingProxyType({"minmax": channel_scales, "mse": mse_channel_scales})
"""How the scales of a weight follow from its values, by the name of `Quantize.weight_range`."""

GATE_RANGE = Range(0.0, 1.0)
"""Sigmoid and hard sigmoid."""

HARD_SIGMOID = ActivationScheme(3 / 128, 128, read_as=(1 / 256, 0))
"""`hardsigmoid(x) = clamp(x / 6 + 1/2, 0, 1)` as a scheme of `x` that clamps: what `x` is quantized by, and
what its integers then mean. The integer 255 stands for 255/256 instead of one.
"""


def tensors_to_observe(program: Program, target: Target, options: Quantize | None = None) -> list[str]:
    """Return the node names whose ranges :func:`plan_quantization` needs: what to pass to `calibrate`."""
    if not target.uniform:  # what stays in float, so that each tensor has one scheme, depends on ranges
        return tensors_of_any_choice(program, target, options)
    return _placement(program, target, options or Quantize()).observed()


def capable_operators(program: Program, target: Target, options: Quantize | None = None) -> dict[str, str]:
    """Return the operators that can run in int8, each with the kernel the runtime should show.

    `""` stands for those without a kernel of their own: absorbed rectifiers, layout.
    """
    return _any_choice(program, target, options or Quantize()).kernels


def tensors_of_any_choice(program: Program, target: Target, options: Quantize | None = None) -> list[str]:
    """Return the node names whose ranges some plan may need, whichever operators run in int8."""
    kernels = capable_operators(program, target, options)
    observed = set(_any_choice(program, target, options or Quantize()).observed())
    if target.uniform:
        observed.update(tensors_to_observe(program, target, options))
    for node in program.graph.nodes:
        row = role(node)
        if node.name in kernels and row is not None:
            observed.update(tensor.name for tensor in (*activations(node, row), *tensors_of(node)))
    return [node.name for node in program.graph.nodes if node.name in observed]


def plan_quantization(
    program: Program,
    ranges: Mapping[str, Range],
    target: Target,
    options: Quantize | None = None,
    *,
    integers: AbstractSet[str] | None = None,
    spared: AbstractSet[str] = frozenset(),
) -> QuantizationPlan:
    """Decide the precision of every operator and the scheme of every quantized tensor.

    `ranges` holds at least :func:`tensors_to_observe`. `integers` names the operators that run in int8, and
    no others do; for any of them :func:`tensors_of_any_choice` must be there. None leaves it to rules.
    `spared` names operators that stay in float.

    Raises:
        InputError: a range is missing or not finite.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    asked = options or Quantize()
    masks = unbounded(program.graph.nodes, ranges)
    place_without = partial(_placement_without, program, target, asked, integers, {*spared, *masks})
    placement = reached(place_without(()), nodes, ranges, place_without)
    placement.declined.update({name: UNBOUNDED for name in masks if name in placement.declined})
    chosen = _activation_schemes(placement, nodes, ranges, target)
    weights = _weight_schemes(
        program, placement, chosen, target, SCALES[(options or Quantize()).weight_range]
    )
    return QuantizationPlan(
        target=target.name,
        kernels=placement.kernels,
        activations=chosen,
        integer_only=tuple(name for name in placement.tensors if name in placement.integer_only),
        weights={name: _frozen(scheme) for name, scheme in weights.items()},
        biases=_bias_schemes(program, placement, (chosen, weights), target),
        guarded=tuple(name for name in placement.guarded if _is_image_operator(nodes[name])),
        declined=tuple(
            Declined(node.name, placement.declined[node.name], walk.source(node))
            for node in program.graph.nodes
            if node.name in placement.declined
        ),
    )


def _placement_without(
    program: Program,
    target: Target,
    options: Quantize,
    integers: AbstractSet[str] | None,
    spared: AbstractSet[str],
    idle: tuple[str, ...],
) -> Placement:
    return _placement(program, target, options, integers, {*spared, *idle})


def _any_choice(program: Program, target: Target, options: Quantize) -> Placement:
    """Everything in integers that can be, whether or not kernels agree on the scheme of a tensor."""
    everything = {node.name for node in program.graph.nodes}
    return place(program, replace(target, narrowest_group=0), options.exclude, everything)


def _placement(
    program: Program,
    target: Target,
    options: Quantize,
    integers: AbstractSet[str] | None = None,
    spared: AbstractSet[str] = frozenset(),
) -> Placement:
    """Place with what the user asked for: full precision, and a choice that was made by prices, ignore what
    the target measured as too slow.
    """
    priced = options.precision == "full" or integers is not None
    chosen = replace(target, narrowest_group=0) if priced else target
    return place_in_agreement(program, chosen, options.exclude, integers, spared)


def gate_name(node: str) -> str:
    """Return the name of the tensor that a self-gated activation multiplies its input with."""
    return f"{node}_gate"


def _activation_schemes(
    placement: Placement, nodes: Mapping[str, fx.Node], ranges: Mapping[str, Range], target: Target
) -> dict[str, ActivationScheme]:
    hard = {name for name in placement.kernels if nodes[name].target is aten.hardsigmoid.default}
    roots = {
        name: _scheme(
            (name, *placement.covered.get(name, ())), ranges, placement.schemes.get(name, target.activations)
        )
        for name in placement.roots()
        if name not in hard
    }
    roots |= dict.fromkeys(hard, HARD_SIGMOID)
    chosen: dict[str, ActivationScheme] = {}
    for name, root in placement.tensors.items():
        if name in placement.kernels and nodes[name].target in GATES:
            chosen[gate_name(name)] = _gate_scheme(nodes[name], target)
        chosen[name] = roots[root] if root == name else _repeated(roots[root], root)
    return chosen


def _gate_scheme(node: fx.Node, target: Target) -> ActivationScheme:
    """Return the scheme of what a self-gated activation multiplies its input with."""
    hard = GATES[node.target] is aten.hardsigmoid.default and Kind.HARD_SIGMOID in target.kernels
    return HARD_SIGMOID if hard else _covering(GATE_RANGE, target.activation_scheme(Kind.GATE))


def _repeated(scheme: ActivationScheme, root: str) -> ActivationScheme:
    """Return the scheme of layout, which repeats what readers take the integers of `root` by."""
    read = scheme.read
    return replace(scheme, scale=read.scale, zero_point=read.zero_point, read_as=None, shares=root)


def _scheme(names: tuple[str, ...], ranges: Mapping[str, Range], form: Scheme) -> ActivationScheme:
    """Return one scheme for all of some tensors."""
    for name in names:
        if name not in ranges:
            raise InputError(
                f"there is no range for {name}", hint="calibrate the tensors of tensors_to_observe"
            )
        if not ranges[name].finite:
            raise InputError(f"the range of {name} is {ranges[name]}", hint="look at the calibration data")
    low, high = min(ranges[name].low for name in names), max(ranges[name].high for name in names)
    return _covering(Range(low, high), form)


def _covering(found: Range, form: Scheme) -> ActivationScheme:
    """Return the scheme of a tensor in the form that the target wants."""
    if form.symmetric:
        return ActivationScheme(symmetric(found.low, found.high).scale, 0, dtype=form.dtype)
    affine = asymmetric(found.low, found.high)
    zero = affine.zero_point - (128 if form.signed else 0)
    return ActivationScheme(affine.scale, zero, dtype=form.dtype)


class _Scales:
    """The scales of one weight while its readers are looked at."""

    def __init__(self, axis: int | None, limit: int, scales: Tensor) -> None:
        self.axis, self.limit, self.scales = axis, limit, scales


def _weight_schemes(
    program: Program,
    placement: Placement,
    chosen: Mapping[str, ActivationScheme],
    target: Target,
    scales_of: Callable[[Tensor, int | None, int], Tensor],
) -> dict[str, _Scales]:
    """Return one scheme per weight, wide enough for the biases of all its readers."""
    nodes = {node.name: node for node in program.graph.nodes}
    schemes: dict[str, _Scales] = {}
    for name in placement.contractions:
        node = nodes[name]
        weight, bias, source = _operands(node)
        values = walk.tensor(program, weight)
        key = str(weight.target)
        if key not in schemes:
            form = target.weight_scheme(_row(node).kind, batched=is_batched(node, _row(node)))
            axis = _channel_axis(node, values.dim()) if form.per_channel else None
            schemes[key] = _Scales(axis, limit_of(form), scales_of(values, axis, limit_of(form)))
        if bias is not None and _has_integer_bias(node, target):
            scheme = schemes[key]
            fitted = fit_bias(scheme.scales, walk.tensor(program, bias), _input_scale(source, chosen))
            scheme.scales = fitted if scheme.axis is not None else fitted.amax(0, keepdim=True)
    return schemes


def _bias_schemes(
    program: Program,
    placement: Placement,
    made: tuple[Mapping[str, ActivationScheme], Mapping[str, _Scales]],
    target: Target,
) -> dict[str, BiasScheme]:
    """Return the schemes of integer biases, given those of activations and weights."""
    chosen, weights = made
    nodes = {node.name: node for node in program.graph.nodes}
    schemes: dict[str, BiasScheme] = {}
    for name in placement.contractions:
        weight, bias, source = _operands(nodes[name])
        if bias is not None and _has_integer_bias(nodes[name], target):
            scales = bias_scales(_input_scale(source, chosen), weights[str(weight.target)].scales)
            schemes[name] = BiasScheme(str(bias.target), _tuple(scales))
    for name in placement.guarded:
        if not _is_image_operator(nodes[name]):
            schemes[name] = _guard(program, nodes[name])
    return schemes


def _is_image_operator(node: fx.Node) -> bool:
    """Whether a guarded operator is a convolution, whose input has channels second."""
    row = role(node)
    return row is not None and row.kind is not Kind.LINEAR


def _guard(program: Program, node: fx.Node) -> BiasScheme:
    """Return a bias in 31 bits, finer than the float it replaces: all that matters is that it is dequantized.

    ONNX Runtime quantizes the weight of a float Gemm between DQ and Q unless its bias comes out of a node. A
    convolution with such a bias would not get its blocked layout: its input is dequantized by channel
    instead (`QuantizationPlan.guarded`).
    """
    bias = _operands(node)[1]
    channels = walk.hint_shape(node)[-1 if walk.value(node).dim() == 2 else 1]
    largest = torch.ones(channels) if bias is None else walk.tensor(program, bias).detach().abs()
    scales = (largest.double() / BIAS_LIMIT).to(torch.float32).clamp(min=SMALLEST_SCALE)
    return BiasScheme(None if bias is None else str(bias.target), _tuple(scales))


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node | None, fx.Node]:
    """Return the weight, the bias and the input of a contraction."""
    row = _row(node)
    weight = operand(node, row.weight)
    assert weight is not None
    return weight, operand(node, row.bias), activations(node, row)[0]


def _input_scale(source: fx.Node, chosen: Mapping[str, ActivationScheme]) -> float:
    """Return the scale of what a contraction reads, perhaps through layout that has no pair of its own."""
    while source.name not in chosen:
        source = activations(source, _row(source))[0]
    return chosen[source.name].read.scale


def _has_integer_bias(node: fx.Node, target: Target) -> bool:
    row = _row(node)
    return target.kernel(row.kind, batched=is_batched(node, row)).integer_bias


def _channel_axis(node: fx.Node, rank: int) -> int:
    return _row(node).axis % rank


def _row(node: fx.Node) -> Role:
    row = role(node)
    assert row is not None
    return row


def _frozen(scheme: _Scales) -> WeightScheme:
    return WeightScheme(scheme.axis, scheme.limit, _tuple(scheme.scales))


def _tuple(scales: Tensor) -> tuple[float, ...]:
    return tuple(scales.detach().double().tolist())
