"""Change the floating type of a program: its tensors and the types written in its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxcompress.graph.module import same_tensor

aten = torch.ops.aten

FACTORIES = frozenset(
    {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "scalar_tensor", "zeros"}
)
"""Operators that make a tensor from sizes and scalars, with the default type when none is given."""


def converted(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """New tensors, the floating ones in `dtype` (None: as they are); what was tied stays tied."""
    made: dict[tuple[object, ...], torch.Tensor] = {}
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        key = same_tensor(tensor) if tensor.numel() else (name,)
        if key not in made:
            made[key] = _convert(tensor, dtype)
        result[name] = made[key]
    return result


def _convert(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    data = tensor.detach()
    data = data.to(dtype) if dtype is not None and data.is_floating_point() else data.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


def retype(graph: fx.Graph, dtype: torch.dtype) -> list[str]:
    """Let nodes that name float32 name `dtype`; casts to half precisions stay. Returns notes about those."""
    notes: list[str] = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        node.args = fx.map_arg(_swap(node.args, dtype), lambda arg: arg)
        node.kwargs = fx.map_arg(_swap(node.kwargs, dtype), lambda arg: arg)
        val = node.meta.get("val")
        if (
            str(node.target).split(".")[-2:-1]
            and _packet(node) in FACTORIES
            and isinstance(val, torch.Tensor)
            and val.dtype == torch.float32
            and node.kwargs.get("dtype") is None
        ):
            node.update_kwarg("dtype", dtype)
        if any(half in node.args or half in node.kwargs.values() for half in (torch.float16, torch.bfloat16)):
            notes.append(f"{node.name} keeps its cast to half precision")
    return notes


def _packet(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return getattr(packet, "__name__", "")


def _swap(value: Any, dtype: torch.dtype) -> Any:
    if value is torch.float32:
        return dtype
    if isinstance(value, tuple | list):
        return type(value)(_swap(item, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _swap(item, dtype) for key, item in value.items()}
    return value
