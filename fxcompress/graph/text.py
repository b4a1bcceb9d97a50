"""A stable, readable listing of a program: one line per input, tensor, operator and output."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.module import same_tensor, tied
from fxcompress.graph.signature import Holder

_TO_THE_END = 2**63 - 1
_WORD = re.compile(r"\w+")


def listing(program: Holder) -> str:
    """The whole program as text; the same program prints the same text in every process."""
    named = symbol_names(program)
    lines = ["inputs:"]
    lines += [
        f"  {node.name}: {describe(node.meta.get('val'), named)}" for node in walk.placeholders(program)
    ]
    lines.append("tensors:")
    names = tied(program.module)
    for node in walk.tensor_nodes(program):
        kind = "parameter" if isinstance(walk.tensor(program, node), torch.nn.Parameter) else "buffer"
        also = _others(names, walk.tensor(program, node), str(node.target))
        tied_to = f" = {', '.join(also)}" if also else ""
        lines.append(f"  {node.name}: {describe(node.meta.get('val'), named)} {kind} {node.target}{tied_to}")
    lines.append("operators:")
    calls = [node for node in program.module.graph.nodes if node.op == "call_function"]
    lines += [f"  {line(node, named)}" for node in calls]
    lines.append("outputs:")
    for name, node in zip(program.signature.outputs, walk.output_values(program), strict=True):
        lines.append(f"  {name}: {describe(node.meta.get('val'), named)} = {node.name}")
    return "\n".join(lines)


def _others(names: dict[tuple[object, ...], list[str]], tensor: torch.Tensor, name: str) -> list[str]:
    """The other names of a tensor."""
    return [other for other in names.get(same_tensor(tensor), []) if other != name]


def line(node: fx.Node, named: Callable[[str], str] = str) -> str:
    """One operator: `name: type[shape] = operator(arguments)  # module`."""
    arguments = [_argument(arg) for arg in node.args]
    arguments += [f"{key}={_argument(arg)}" for key, arg in node.kwargs.items()]
    path = walk.module_path(node)
    where = f"  # {path}" if path else ""
    called = f"{target_name(node.target)}({', '.join(arguments)})"
    return f"{node.name}: {describe(node.meta.get('val'), named)} = {called}{where}"


def target_name(target: Any) -> str:
    """`conv2d` for `aten.conv2d.default`, `add.Tensor` for other overloads, `getitem` for Python's own."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removeprefix("aten.").removesuffix(".default")
    return str(getattr(target, "__name__", target))


def describe(val: Any, named: Callable[[str], str] = str) -> str:
    """`f32[batch, 3, 8, 8]` for a tensor, the expression for a size, a bracketed list for several values."""
    if isinstance(val, torch.Tensor):
        sizes = ", ".join(named(str(size)) for size in val.shape)
        return f"{_short(val.dtype)}[{sizes}]"
    if isinstance(val, list | tuple):
        return f"({', '.join(describe(item, named) for item in val)})"
    if isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool):
        return named(str(val))
    return "?" if val is None else f"{type(val).__name__} {val}"


def symbol_names(program: Holder) -> Callable[[str], str]:
    """A function that writes the signature's names for the symbols in an expression."""
    names: dict[str, str] = {}
    for node in walk.placeholders(program):
        val = node.meta.get("val")
        for dim, name in program.signature.dynamic.get(node.name, {}).items():
            if isinstance(val, torch.Tensor) and isinstance(val.shape[dim], torch.SymInt):
                names[str(val.shape[dim])] = name

    def rename(expression: str) -> str:
        return _WORD.sub(lambda match: names.get(match[0], match[0]), expression)

    return rename


def _short(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    for long, short in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i")):
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def _argument(arg: Any) -> str:
    if isinstance(arg, fx.Node):
        return str(arg.name)
    if isinstance(arg, list | tuple):
        return f"[{', '.join(_argument(item) for item in arg)}]"
    if isinstance(arg, torch.dtype):
        return _short(arg)
    if arg is not True and arg == _TO_THE_END:
        return "end"
    return str(arg)
