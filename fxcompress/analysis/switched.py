"""A quantized program with its pairs switched off, or with those of one layer on.

With all of them off, integers are the real numbers that they stand for: the float program. What integers are
read by may be another scheme than they were written by (a hard sigmoid, `plan/quantization.py`); that is a
scale, a shift and clamping, and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import Tensor, fx

from fxcompress.graph import walk
from fxcompress.graph.execute import Executor
from fxcompress.graph.program import Program
from fxcompress.graph.rectifiers import is_rectified
from fxcompress.numerics.affine import as_float32
from fxcompress.ops.quantization import Kind, role

aten = torch.ops.aten
_ops = torch.ops.quantized_decomposed
QUANTIZE = _ops.quantize_per_tensor.default
BY_TENSOR = _ops.dequantize_per_tensor.default
DEQUANTIZE = frozenset({BY_TENSOR, _ops.dequantize_per_channel.default})


class Switched(Executor):
    """Runs a quantized program with its pairs switched off: integers are the real numbers they stand for."""

    def __init__(self, reference: Program, quantized: Program) -> None:
        super().__init__(quantized)
        self.garbage_collect_values = False
        self.stored = {
            str(node.target): walk.tensor(reference, node).detach() for node in walk.tensor_nodes(reference)
        }

    def float_values(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
        """Return the value of every node."""
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)
        return dict(self.env)

    def run_node(self, n: fx.Node) -> Any:
        """Compute one node in float."""
        if n.op == "get_attr":
            return self.stored.get(str(n.target), super().run_node(n))
        if n.op != "call_function":
            return super().run_node(n)
        if n.target is QUANTIZE:
            return self.env[n.args[0]]  # type: ignore[index]
        if n.target in DEQUANTIZE:
            return self._real(n)
        if _pads_integers(n):
            return self._padded(n)
        if n.target is aten.clamp.default and n.all_input_nodes[0].target is QUANTIZE:
            return self.env[n.args[0]]  # type: ignore[index]
        return super().run_node(n)

    def _padded(self, node: fx.Node) -> Any:
        """Pad the real numbers with what the integer that is padded with was written for."""
        scale, zero = _quantize_of(node).args[1:3]
        fill = walk.argument(node, "value") or 0
        value = (float(fill) - float(zero)) * float(scale)  # type: ignore[arg-type]
        (real, amounts, *_), _ = self.fetch_args_kwargs_from_env(node)
        return F.pad(real, amounts, value=value)

    def _real(self, node: fx.Node) -> Any:
        """Return what a dequantize stands for: the float tensor it was made of, or what it reads."""
        stored = node.args[0]
        assert isinstance(stored, fx.Node)
        if stored.op != "get_attr":
            real = _reread(self.env[stored], _quantize_of(stored).args[1:], self._read(node))
            return real.relu() if is_rectified(node) else real
        known = self.stored.get(float_name(str(stored.target)))
        return known if known is not None else Executor.run_node(self, node)

    def alone(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Compute one layer with its own pairs switched on, everything before it in float."""
        self.env = dict(values)
        with torch.no_grad():
            for source in node.all_input_nodes:
                self._switch_on(source, values)
            return Executor.run_node(self, node)

    def _switch_on(self, source: fx.Node, values: dict[fx.Node, Any]) -> None:
        """Round what a layer reads, through layout that has no pair of its own."""
        row = role(source)
        if source.target in DEQUANTIZE:
            self.env[source] = self._rounded(source, values)
        elif row is not None and row.kind is Kind.LAYOUT:
            for before in source.all_input_nodes:
                self._switch_on(before, values)
            self.env[source] = Executor.run_node(self, source)

    def _rounded(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        stored = node.args[0]
        assert isinstance(stored, fx.Node)
        if stored.op == "get_attr":
            if str(stored.target).endswith("_int32"):
                return values[node]
            args = [self._attribute(arg) for arg in node.args]
            return node.target(*args)  # type: ignore[operator]
        written = _quantize_of(stored).args[1:]
        whole = QUANTIZE(values[stored], *written)
        if stored.target is aten.clamp.default:
            whole = whole.clamp(*stored.args[1:3])
        return BY_TENSOR(whole, *self._read(node), *written[2:])

    def _read(self, node: fx.Node) -> tuple[float, int]:
        """The scale and zero point that an activation is read by; where they are stated by channel, as they
        are for a guarded convolution, all channels have the same.
        """
        scale, zero = (self._attribute(arg) for arg in node.args[1:3])
        if node.target is BY_TENSOR:
            return scale, zero
        return float(scale[0]), int(zero[0])

    def _attribute(self, arg: Any) -> Any:
        return self.fetch_attr(str(arg.target)) if isinstance(arg, fx.Node) else arg

    def after_change(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Return the outputs with one layer in integers; only what depends on it is computed again."""
        changed = self.alone(node, values)
        below = _dependents(node)
        env = {other: value for other, value in values.items() if other not in below and other.op != "output"}
        env[node] = changed
        with torch.no_grad():
            return self.run(enable_io_processing=False, initial_env=env)


def _quantize_of(node: fx.Node) -> fx.Node:
    """The quantization that integers come from, through layout."""
    while node.target is not QUANTIZE:
        node = node.all_input_nodes[0]
    return node


def _reread(value: Tensor, written: Sequence[Any], read: tuple[float, int]) -> Tensor:
    """What integers mean that are read by another scheme than they were written by, without the rounding.

    That is a scale, a shift and clamping: a hard sigmoid (`plan/quantization.py`).
    """
    if as_float32(written[0]) == as_float32(read[0]) and written[1] == read[1]:
        return value
    (scale, zero, low, high), (read_scale, read_zero) = written[:4], read
    return ((value / scale + zero).clamp(low, high) - read_zero) * read_scale


def float_name(stored: str) -> str:
    """Return the name of the float parameter that integers are stored for."""
    return stored.removesuffix("_int8").removesuffix("_int32").removesuffix("_int4")


def _pads_integers(node: fx.Node) -> bool:
    row = role(node)
    if row is None or row.kind is not Kind.PAD:
        return False
    source = node.all_input_nodes[0]
    return source.target is QUANTIZE or (role(source) is not None and _pads_integers(source))


def _dependents(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    queue = [node]
    while queue:
        fresh = [reader for reader in queue.pop().users if reader not in found]
        found.update(fresh)
        queue.extend(fresh)
    return found
