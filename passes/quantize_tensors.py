"""Write a quantization plan into the graph: integers stored, quantize/dequantize pairs placed. No policy.

    conv2d(x, weight, bias)  =>  x_q = quantize(x); x_dq = dequantize(x_q)
                                 w_dq = dequantize(weight_int8, weight_scale)
                                 b_dq = dequantize(bias_int32, bias_scale)
                                 conv2d(x_dq, w_dq, b_dq)

The float `NAME` of a weight disappears; the program then has `NAME_int8` and `NAME_scale` instead, and for
a bias `NAME_int32` and `NAME_int32_scale`. Zero points of channels are zeros, stored once per length.

Three operators change form, because the integer kernel of a runtime knows only the other one:

    mean(x, [2, 3])             =>  squeeze(mean(x, [2, 3], keepdim))         a pooling, then layout
    pad(x), zeros, in integers  =>  dequantize(pad(quantize(x), zero_point))
    silu(x)                     =>  x * sigmoid(x)                            hardswish: hardsigmoid
    hardsigmoid(x)              =>  dequantize(quantize(x, steps of x), steps of the result)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx

from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.affine import Affine, quantize_bias, quantize_channels
from fxcompress.ops.quantization import GATES, Kind, activations, role
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.plan.quantization import gate_name
from fxcompress.plan.quantization_plan import ActivationScheme, BiasScheme, QuantizationPlan, WeightScheme
from fxcompress.plan.tables import lookups

aten = torch.ops.aten
integers = torch.ops.quantized_decomposed
DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


@dataclass(frozen=True)
class QuantizeTensors:
    """Carry out `plan` on the program it was made for."""

    name: ClassVar[str] = "quantize-tensors"
    plan: QuantizationPlan

    def run(self, program: Program) -> Outcome:
        """Return the program with the plan's integers in it.

        Raises:
            InputError: the plan names an operator, tensor or parameter that the program does not have.
        """
        declined = tuple(Decline(item.node, item.reason, item.source) for item in self.plan.declined)
        if not self.plan.kernels:
            return Outcome(program, (), declined)
        copy = program.copy()
        edits = _Edits(copy, self.plan)
        edits.weights()
        edits.biases()
        edits.forms()
        edits.activations()
        edits.guards()
        edit.tidy(copy)
        edit.reinfer(copy)
        return Outcome(copy, tuple(edits.changed), declined)


class _Edits:
    """The edits of one run, on a copy."""

    def __init__(self, program: Program, plan: QuantizationPlan) -> None:
        self.program, self.plan = program, plan
        self.nodes = {node.name: node for node in program.graph.nodes}
        self.stored = {str(node.target): node for node in walk.tensor_nodes(program)}
        self.zeros: dict[int, fx.Node] = {}
        self.changed: list[str] = []
        wanted = (
            *plan.kernels,
            *(name for name in plan.activations if not self._is_gate(name)),
            *plan.biases,
        )
        self._require(wanted, self.nodes, "operator or tensor")
        self._require(plan.weights, self.stored, "parameter")
        self.readers = {self.nodes[name] for name in plan.kernels}

    def _is_gate(self, name: str) -> bool:
        return any(gate_name(node) == name for node in self.plan.kernels)

    def _require(self, names: Iterable[str], known: Iterable[str], what: str) -> None:
        missing = [name for name in names if name not in set(known)]
        if missing:
            raise InputError(
                f"the quantization plan names the {what} {missing[0]!r}, which this program does not have",
                hint="use a plan with the program it was made for",
            )

    def weights(self) -> None:
        """Store every weight as int8 and let its readers read the dequantized one."""
        for name, scheme in self.plan.weights.items():
            node = self.stored[name]
            values = walk.tensor(self.program, node)
            whole = _quantized(values, scheme)
            real = self._dequantize(f"{name}_int8", f"{name}_scale", whole, scheme.scales, scheme.axis, node)
            edit.replace_uses(node, real, only=node.users.keys() - lookups(node))
            self.changed.append(f"{name} stored as int8, {len(scheme.scales)} scales")

    def biases(self) -> None:
        """Store the biases that the plan says as int32; each reader has its own, since it has its own
        scale.
        """
        for name, scheme in self.plan.biases.items():
            node = self.nodes[name]
            row = role(node)
            if row is None or row.bias is None:
                raise InputError(f"the quantization plan has a bias for {name}, which takes none")
            stem = f"{scheme.parameter or name + '_bias'}_int32"
            whole = quantize_bias(self._bias(scheme), torch.tensor(scheme.scales))
            whole_tensor = scheme.parameter is not None and len(scheme.scales) < len(whole)
            axis = None if whole_tensor else 0
            real = self._dequantize(stem, f"{stem}_scale", whole, scheme.scales, axis, node)
            edit.set_argument(node, row.bias, real)

    def _bias(self, scheme: BiasScheme) -> Tensor:
        if scheme.parameter is None:
            return torch.zeros(len(scheme.scales))
        self._require([scheme.parameter], self.stored, "parameter")
        return walk.tensor(self.program, scheme.parameter).detach()

    def _dequantize(
        self,
        name: str,
        scale_name: str,
        whole: Tensor,
        scales: tuple[float, ...],
        axis: int | None,
        reader: fx.Node,
    ) -> fx.Node:
        """Store integers with their scales; return the real numbers they stand for, right before the first
        reader.
        """
        first = reader if reader.op == "call_function" else min(reader.users)
        stored = edit.add_tensor(self.program, name, whole)
        if axis is None:
            bounds = torch.iinfo(whole.dtype)
            one = (stored, scales[0], 0, bounds.min, bounds.max, whole.dtype)
            return edit.call_before(
                first, integers.dequantize_per_tensor.default, one, name=f"{stored.name}_dq"
            )
        scale = edit.add_tensor(self.program, scale_name, torch.tensor(scales, dtype=torch.float32))
        bounds = torch.iinfo(whole.dtype)
        args = (stored, scale, self._zero_points(len(scales)), axis, bounds.min, bounds.max, whole.dtype)
        return edit.call_before(
            first, integers.dequantize_per_channel.default, args, name=f"{stored.name}_dq"
        )

    def _zero_points(self, channels: int) -> fx.Node:
        if channels not in self.zeros:
            zeros = torch.zeros(channels, dtype=torch.int64)
            self.zeros[channels] = edit.add_tensor(self.program, f"zero_points_{channels}", zeros)
        return self.zeros[channels]

    def forms(self) -> None:
        """Give operators the form that has an integer kernel; see the module's docstring."""
        for name in self.plan.kernels:
            node = self.nodes[name]
            if node.target in GATES:
                self._split_gate(node)
            elif node.target is aten.hardsigmoid.default and self.plan.kernels[name]:
                edit.set_call(node, aten.leaky_relu.default, (node.args[0], 1.0))
            elif node.target is aten.mean.dim and not walk.argument(node, "keepdim", False):
                self._keep_dimensions(node)

    def _split_gate(self, node: fx.Node) -> None:
        """The node becomes the product, so that its name stays."""
        source = node.args[0]
        name = gate_name(node.name)
        clamped = self.plan.activations[name].read_as is not None
        # The identity: a kernel that goes from one scale to another.
        target, args = (
            (aten.leaky_relu.default, (source, 1.0)) if clamped else (GATES[node.target], (source,))
        )
        gate = edit.call_before(node, target, args, name=name)
        edit.set_call(node, aten.mul.Tensor, (source, gate))
        self.nodes[gate.name] = gate
        self.readers.add(gate)

    def _keep_dimensions(self, node: fx.Node) -> None:
        readers = list(node.users)
        squeezed = edit.call_after(node, aten.squeeze.dims, (node, [2, 3]), name=f"{node.name}_flat")
        edit.replace_uses(node, squeezed, only=readers)
        edit.set_argument(node, "keepdim", True)
        if node.name in self.plan.activations:
            self._pair(squeezed, self.plan.activations[node.name], set(squeezed.users))

    def activations(self) -> None:
        """Place one pair after every quantized tensor, in graph order, so that padding finds its input's
        integers.
        """
        order = {node: index for index, node in enumerate(self.program.graph.nodes)}
        names = sorted(self.plan.activations, key=lambda name: order[self.nodes[name]])
        for name in names:
            node, scheme = self.nodes[name], self.plan.activations[name]
            row = role(node)
            if row is not None and row.kind is Kind.PAD and name in self.plan.kernels:
                self._pad_integers(node, scheme)
                continue
            everyone = name in self.plan.integer_only or self._is_gate(name)
            readers = {reader for reader in node.users if everyone or reader in self.readers}
            self._pair(node, scheme, readers)
            shown = f" as {scheme.shares}" if scheme.shares else ""
            self.changed.append(f"{name} quantized{shown}")

    def _pair(self, node: fx.Node, scheme: ActivationScheme, readers: set[fx.Node]) -> None:
        """`node` => `dequantize(quantize(node))` for the readers given."""
        made = node.args[0] if node.target is aten.hardsigmoid.default and scheme.read_as else node
        args = (made, *_arguments(scheme.affine, scheme.dtype))
        whole = edit.call_after(node, integers.quantize_per_tensor.default, args, name=f"{node.name}_q")
        self._real(node, whole, scheme, readers)

    def _real(self, node: fx.Node, whole: fx.Node, scheme: ActivationScheme, readers: set[fx.Node]) -> None:
        """Let the readers given of `node` read what the integers of `whole` stand for."""
        args = (whole, *_arguments(scheme.read, scheme.dtype))
        real = edit.call_after(whole, integers.dequantize_per_tensor.default, args, name=f"{node.name}_dq")
        edit.replace_uses(node, real, only=readers)

    def guards(self) -> None:
        """Let guarded convolutions read their input through scales by channel, all of them the same."""
        made: dict[fx.Node, fx.Node] = {}
        for name in self.plan.guarded:
            node = self.nodes[name]
            row = role(node)
            assert row is not None
            source = activations(node, row)[0]
            if source.target is not integers.dequantize_per_tensor.default:
                continue
            if source not in made:
                made[source] = self._by_channel(source)
            edit.replace_uses(source, made[source], only=[node])

    def _by_channel(self, source: fx.Node) -> fx.Node:
        args: tuple[Any, ...] = source.args
        whole, scale, zero_point, low, high, kind = args
        channels = walk.hint_shape(_measured(source))[1]
        stored = [
            edit.add_tensor(
                self.program, f"{source.name}_{what}", torch.full((channels,), value, dtype=dtype)
            )
            for what, value, dtype in (("scales", scale, torch.float32), ("zeros", zero_point, torch.int64))
        ]
        args = (whole, *stored, 1, low, high, kind)
        name = f"{source.name}_by_channel"
        return edit.call_after(source, integers.dequantize_per_channel.default, args, name=name)

    def _pad_integers(self, node: fx.Node, scheme: ActivationScheme) -> None:
        """Pad the integers of what is padded; both sides have one scale, so nothing else changes."""
        row = role(node)
        assert row is not None
        source = activations(node, row)[0]
        args = (source.args[0], walk.argument(node, "pad"), scheme.zero_point)
        edit.set_call(node, aten.constant_pad_nd.default, args)
        self._real(node, node, scheme, set(node.users))


def _measured(node: fx.Node) -> fx.Node:
    """The tensor that new pairs stand for, which has metadata already."""
    while "val" not in node.meta:
        node = node.all_input_nodes[0]
    return node


def _quantized(values: Tensor, scheme: WeightScheme) -> Tensor:
    return quantize_channels(values.detach(), torch.tensor(scheme.scales), scheme.axis, scheme.limit)


def _arguments(affine: Affine, dtype: str) -> tuple[Any, ...]:
    return affine.scale, affine.zero_point, affine.low, affine.high, DTYPES[dtype]
