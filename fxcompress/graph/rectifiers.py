"""Rectifiers behind a dequantization, taken into the integers that it reads.

    relu(dequantize(quantize(x)))  =>  dequantize(quantize(relu(x)))                where the zero point is 0
    relu(dequantize(q))            =>  dequantize(clamp(q, zero_point, 255))        else

Both are exact: quantization is monotone, and zero is one of its numbers. Eager quantization-aware training
writes a rectifier that is a module of its own behind the quantizer of its convolution, and what reads it
would read no integers: one convolution of such a network of three ran in INT8, three times slower than float.
A rectifier at 6 is one at 0 where the integers end before 6; else it stays.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import fx

from fxcompress.graph import edit, walk
from fxcompress.graph.signature import Holder

aten = torch.ops.aten
integers = torch.ops.quantized_decomposed

_QUANTIZE = integers.quantize_per_tensor.default
_QUANTIZERS = (_QUANTIZE, integers.quantize_per_tensor.tensor)
_DEQUANTIZE = integers.dequantize_per_tensor.default
_CEILINGS = {aten.relu.default: float("inf"), aten.relu6.default: 6.0, aten.hardtanh.default: None}
"""Above which value a rectifier ends; None where its arguments say."""


def take_in_rectifiers(program: Holder) -> None:
    """Let rectifiers of uint8 tensors act on the integers, in place."""
    for node in list(program.module.graph.nodes):
        real = node.args[0] if node.target in _CEILINGS else None
        if not isinstance(real, fx.Node) or real.target is not _DEQUANTIZE or not _rectifies(node, real):
            continue
        quantizer = quantizer_of(real)
        if quantizer is None or not _alone(real, quantizer):
            continue
        if real.args[2] == 0:
            _rectify_in_front(quantizer)
            edit.replace_uses(node, real)
        else:
            edit.replace_uses(node, _clamped(node, real, quantizer))


def clamp_in_front(program: Holder) -> None:
    """Clamp what is quantized instead of the integers, which few runtimes beside ONNX Runtime can do.

    The ends are numbers of the quantization, so that it changes no integer. A tensor whose integers are read
    unclamped too stays as it is.
    """
    for quantizer in list(program.module.graph.nodes):
        clamp = next(iter(quantizer.users), quantizer)
        if quantizer.target is not _QUANTIZE or clamp.target is not aten.clamp.default:
            continue
        if len(quantizer.users) == 1 and clamp_bounds(clamp) is not None:
            edit.set_arg(quantizer, 0, _clamped_source(quantizer, clamp))
            edit.replace_uses(clamp, quantizer)
    edit.tidy(program)
    edit.reinfer(program)


def _clamped_source(quantizer: fx.Node, clamp: fx.Node) -> fx.Node:
    arguments: tuple[Any, ...] = quantizer.args
    source, scale, zero, _, highest = arguments[:5]
    bounds = clamp_bounds(clamp)
    assert bounds is not None
    name = f"{clamp.name}_first"
    if bounds == (zero, highest):
        return edit.call_before(quantizer, aten.relu.default, (source,), name=name)
    low, high = ((bound - zero) * scale for bound in bounds)
    return edit.call_before(quantizer, aten.clamp.default, (source, low, high), name=name)


def clamp_bounds(clamp: fx.Node) -> tuple[int, int] | None:
    """The ends of a clamp of integers; None where it has one end, or ends that are computed."""
    low, high = walk.argument(clamp, "min"), walk.argument(clamp, "max")
    return (low, high) if isinstance(low, int) and isinstance(high, int) else None


def quantizer_of(real: fx.Node) -> fx.Node | None:
    """The quantization that a dequantization reads, through a clamp of the integers."""
    whole = real.args[0]
    if isinstance(whole, fx.Node) and whole.target is aten.clamp.default:
        whole = whole.args[0]
    return whole if isinstance(whole, fx.Node) and whole.target in _QUANTIZERS else None


def is_rectified(real: fx.Node) -> bool:
    """Whether a dequantization reads integers that a clamp ends at zero, inside their range."""
    clamp, _, zero, low = real.args[:4]
    if not isinstance(clamp, fx.Node) or clamp.target is not aten.clamp.default:
        return False
    return zero != low and walk.argument(clamp, "min") == zero


def _alone(real: fx.Node, quantizer: fx.Node) -> bool:
    """Whether a dequantization reads what was written, and nothing else reads integers that are clamped.

    Of two clamps of one tensor the exporter loses the ends of the first.
    """
    whole = real.args[0]
    assert isinstance(whole, fx.Node)
    if real.args[1:3] != quantizer.args[1:3]:
        return False
    if whole is quantizer:
        return not any(reader.target is aten.clamp.default for reader in quantizer.users)
    users = (len(quantizer.users), len(whole.users), len(real.users))
    return users == (1, 1, 1) and clamp_bounds(whole) is not None


def _rectifies(node: fx.Node, real: fx.Node) -> bool:
    """Whether all that a node does to these integers is to end them at zero."""
    _, scale, zero, low, high, dtype = real.args[:6]
    if dtype is not torch.uint8 or not isinstance(zero, int) or not isinstance(scale, float):
        return False
    assert isinstance(low, int) and isinstance(high, int)
    ceiling = _CEILINGS[node.target]  # type: ignore[index]
    if ceiling is None:
        floor, ceiling = walk.argument(node, "min_val", -1.0), walk.argument(node, "max_val", 1.0)
        if floor != 0:
            return False
    return low <= zero and bool((high - zero) * scale <= ceiling)


def _clamped(node: fx.Node, real: fx.Node, quantizer: fx.Node) -> fx.Node:
    """What a rectifier makes of integers, dequantized."""
    whole, *scheme = real.args
    low, high = scheme[1], scheme[3]
    if whole is not quantizer:
        assert isinstance(whole, fx.Node)
        ends = clamp_bounds(whole)
        assert ends is not None and isinstance(low, int)
        low, high = max(ends[0], low), ends[1]
    bounds = (quantizer, low, high)
    clamp = edit.call_before(node, aten.clamp.default, bounds, name=f"{node.name}_clamped")
    return edit.call_before(node, _DEQUANTIZE, (clamp, *scheme), name=f"{node.name}_dq")


def _rectify_in_front(quantizer: fx.Node) -> None:
    """Rectify what is quantized: with a zero point of 0 that changes no integer."""
    source = quantizer.args[0]
    assert isinstance(source, fx.Node)
    if source.target is not aten.relu.default:
        rectifier = edit.call_before(quantizer, aten.relu.default, (source,), name=f"{source.name}_rectified")
        edit.set_arg(quantizer, 0, rectifier)
