"""Graphs with tensors of type quint8, as `convert_to_reference_fx` makes them: the same on plain integers.

quantize_per_tensor(x, scale, zero, quint8).dequantize()  =>  dequantize(quantize(x, scale, zero))  uint8
quantize_per_tensor_dynamic(x, quint8).dequantize()       =>  the same with a scale found at run time

`torch.export` has no tensors of these types.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import fx

from fxcompress.errors import InputError
from fxcompress.graph.fixed_quantizers import at_its_own_scale

integers = torch.ops.quantized_decomposed

PLAIN = {torch.quint8: (0, 255, torch.uint8), torch.qint8: (-128, 127, torch.int8)}
"""By type of quantized tensors, their integers."""

QUINT8 = (torch.quantize_per_tensor, torch.quantize_per_tensor_dynamic)


def use_plain_integers(module: fx.GraphModule) -> None:
    """Quantize_per_tensor to quint8 and dequantize => the same on uint8 tensors."""
    forms: dict[fx.Node, tuple[Any, ...]] = {}
    for node in list(module.graph.nodes):
        if node.target is torch.quantize_per_tensor and _given(node)[3] in PLAIN:
            source, scale, zero, kind = _given(node)
            forms[node] = (scale, zero, *PLAIN[kind])
            node.target = integers.quantize_per_tensor
            node.args, node.kwargs = (source, *forms[node]), {}
        elif node.target is torch.quantize_per_tensor_dynamic:
            _find_at_run_time(node)
        elif node.op == "call_method" and node.target == "dequantize" and node.args[0] in forms:
            node.op, node.target = "call_function", integers.dequantize_per_tensor
            node.args = (node.args[0], *forms[node.args[0]])
    module.recompile()


def _find_at_run_time(node: fx.Node) -> None:
    """Quantize_per_tensor_dynamic and the dequantizations behind it => one function that can be traced."""
    source, _, reduced = _given(node, ("input", "dtype", "reduce_range"))
    if reduced:
        raise InputError(
            f"{node.name} quantizes to 0..127 at run time (quantize_per_tensor_dynamic with "
            "reduce_range=True); runtimes do so to 0..255 only",
            hint="convert with torch.backends.quantized.engine = 'qnnpack', which reduces no range, or pass "
            'the float model with quantize="int8-dynamic"',
        )
    for real in list(node.users):
        if real.target == "dequantize":
            real.op, real.target, real.args = "call_function", at_its_own_scale, (source,)
    if not node.users:
        node.graph.erase_node(node)


def _given(node: fx.Node, names: tuple[str, ...] = ("input", "scale", "zero_point", "dtype")) -> list[Any]:
    """The arguments of a quantization, by place or by name."""
    return [*node.args, *(node.kwargs[name] for name in names[len(node.args) :])]
