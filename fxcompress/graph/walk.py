"""Questions about a graph; nothing here changes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxcompress.graph.module import same_tensor, tied
from fxcompress.graph.signature import Holder

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')
_LIBRARY = f"{Path(torch.__file__).parent}/"
_CALL_SUFFIX = re.compile(r"@\d+")


def is_tensor(node: fx.Node) -> bool:
    """Whether the node's value is one tensor (not a size, a list or nothing)."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def value(node: fx.Node) -> torch.Tensor:
    """The fake tensor a node makes; raises TypeError when it makes no tensor."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        raise TypeError(f"{node.name} is not a tensor")
    return val


def dtype(node: fx.Node) -> torch.dtype:
    """The element type of a tensor node."""
    return value(node).dtype


def shape(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    """The sizes of a tensor node, symbolic ones as `SymInt`."""
    return tuple(value(node).shape)


def hint_shape(node: fx.Node) -> tuple[int, ...]:
    """The sizes of a tensor node with the example's value for each symbolic one."""
    return tuple(hint(size) for size in value(node).shape)


def hint(size: int | torch.SymInt) -> int:
    """The example's value of a size."""
    if isinstance(size, torch.SymInt):
        return int(size.node.hint) if size.node.hint is not None else int(size)
    return int(size)


def is_symbolic(node: fx.Node, dim: int) -> bool:
    """Whether a dimension's size depends on a dynamic input dimension."""
    return varies(value(node).shape[dim])


def varies(size: int | torch.SymInt) -> bool:
    """Whether a size is not one number; tracing may have found that a symbolic one is."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def placeholders(program: Holder) -> list[fx.Node]:
    """The input nodes, in order."""
    return [node for node in program.module.graph.nodes if node.op == "placeholder"]


def tensor_nodes(program: Holder) -> list[fx.Node]:
    """The get_attr nodes: one per parameter, buffer or constant."""
    return [node for node in program.module.graph.nodes if node.op == "get_attr"]


def parameter_nodes(program: Holder) -> list[fx.Node]:
    """The get_attr nodes whose tensor is a trainable parameter of the model."""
    return [node for node in tensor_nodes(program) if isinstance(tensor(program, node), torch.nn.Parameter)]


def output_node(program: Holder) -> fx.Node:
    """The one output node."""
    node: fx.Node = program.module.graph.output_node()
    return node


def output_values(program: Holder) -> list[fx.Node]:
    """The nodes whose values are returned, in the order of `signature.outputs`."""
    return [node for node in output_node(program).args[0] if isinstance(node, fx.Node)]  # type: ignore[union-attr]


def tensor(program: Holder, node: fx.Node | str) -> torch.Tensor:
    """The tensor of a get_attr node, or of a qualified name; raises AttributeError when there is none."""
    return attribute(program.module, str(node.target) if isinstance(node, fx.Node) else node)


def attribute(module: torch.nn.Module, name: str) -> torch.Tensor:
    """The tensor at a dotted name; raises AttributeError when there is none."""
    owner: Any = module
    for part in name.split("."):
        owner = getattr(owner, part)
    if not isinstance(owner, torch.Tensor):
        raise AttributeError(f"{name} is not a tensor")
    return owner


def aliases(program: Holder, name: str) -> list[str]:
    """Every name of the tensor called `name`, itself included, first name first."""
    found = tensor(program, name)
    if not found.numel():
        return [name]
    return tied(program.module)[same_tensor(found)]


def consumers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read a node's value, each once, in graph order."""
    return sorted(node.users)


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument of an operator call by its schema name, wherever it was passed; else its default."""
    if name in node.kwargs:
        return node.kwargs[name]
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return default
    for position, parameter in enumerate(schema.arguments):
        if parameter.name == name:
            if position < len(node.args) and not parameter.kwarg_only:
                return node.args[position]
            return parameter.default_value if parameter.has_default_value() else default
    return default


def module_path(node: fx.Node) -> str:
    """Qualified name of the module that made a node, `""` for the model itself or when unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    return _path(list(stack.values())[-1][0]) if stack else ""


def depends_on_input(node: fx.Node) -> bool:
    """Whether some way leads from a value back to an input; else it is stored, or computed once."""
    seen, queue = {node}, [node]
    while queue:
        found = queue.pop()
        if found.op == "placeholder":
            return True
        fresh = [source for source in found.all_input_nodes if source not in seen]
        seen.update(fresh)
        queue.extend(fresh)
    return False


def module_types(program: Holder) -> dict[str, str]:
    """By path of every module that made a node, its type as `package.module.Name`; `""` is the model."""
    stacks = (node.meta.get("nn_module_stack") or {} for node in program.module.graph.nodes)
    return {_path(entry[0]): str(entry[1]) for stack in stacks for entry in stack.values()}


def _path(entry: object) -> str:
    """The path of a module without the marks of tracing: `L['self'].a@1` is `a`."""
    return _CALL_SUFFIX.sub("", re.sub(r"^L\['self'\]\.?", "", str(entry)))


def source(node: fx.Node) -> str | None:
    """The line of the user's model that made a node, as `file.py:12: code`; None when unknown."""
    return _users_line(node.meta.get("stack_trace"))


@lru_cache(maxsize=1 << 14)
def _users_line(stack_trace: str | None) -> str | None:
    """The innermost line that is not torch's; remembered, since every step of an analysis may ask.

    Code that torch generates (`<eval_with_key>.3`) is in no file, and no line of the user's.
    """
    frames = [frame for frame in _frames(stack_trace) if not frame[0].startswith("<")]
    if not frames:
        return None
    users = [frame for frame in frames if not frame[0].startswith(_LIBRARY)]
    file, line, code = (users or frames)[-1]
    return f"{Path(file).name}:{line}: {code}"


def _frames(stack_trace: str | None) -> Iterator[tuple[str, int, str]]:
    for match in _FRAME.finditer(stack_trace or ""):
        yield match["file"], int(match["line"]), match["code"].strip()
