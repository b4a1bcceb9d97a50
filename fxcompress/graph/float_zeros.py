"""Weights whose zero points are no integers, as embeddings have: stored as the floats that they stand for.

    dequantize(quantize(weight, scales, zeros))  =>  weight_rounded
    fake_quantize(weight, scales, zeros)         =>  weight_rounded

`DequantizeLinear` has integers for zero points, and a rounded one would move every row by up to half a step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, fx

from fxcompress.errors import InputError
from fxcompress.graph import edit, walk
from fxcompress.graph.signature import Holder

integers = torch.ops.quantized_decomposed

_VALUES = (
    torch.ops.aten.fake_quantize_per_channel_affine.default,
    integers.fake_quant_per_channel.default,
    integers.dequantize_per_channel.default,
)


def settle_float_zeros(program: Holder) -> list[str]:
    """Store what such weights stand for, in place; returns a note that names them.

    Raises:
        InputError: an activation has such zero points.
    """
    names: list[str] = []
    for node in list(program.module.graph.nodes):
        if node.target not in _VALUES or not _between_integers(program, node.args[2]):
            continue
        if walk.depends_on_input(node):
            raise InputError(
                "an activation is quantized with zero points that are no integers, which no runtime knows",
                hint="quantize activations with zero points that are integers, as default_fake_quant does",
                node=node.format_node(),
                source=walk.source(node),
            )
        name = _weight(node)
        stored = edit.add_tensor(program, f"{name}_rounded", _value(program, node), trainable=True)
        edit.replace_uses(node, stored)
        names.append(name)
    if not names:
        return []
    edit.tidy(program)
    told = "quantized with zero points that are no integers; stored as the floats that they stand for"
    return [f"{', '.join(names)}: {told}"]


def _between_integers(program: Holder, zeros: Any) -> bool:
    if not isinstance(zeros, fx.Node) or walk.depends_on_input(zeros):
        return False
    stored = _value(program, zeros)
    return stored.is_floating_point() and bool(stored.any())


def _weight(node: fx.Node) -> str:
    """The name of what is quantized."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return str(node.target)


def _value(program: Holder, node: fx.Node) -> Tensor:
    """What a node that depends on no input computes."""
    if node.op == "get_attr":
        return walk.tensor(program, node).detach()
    given: Any = fx.node.map_arg(node.args, lambda item: _value(program, item))
    assert callable(node.target)
    value: Tensor = node.target(*given, **node.kwargs)
    return value
