"""The only functions that change a program's graph or replace its tensors.

A tensor may have several names and several readers: `set_tensor` writes every name, and nothing here ever
writes into a tensor's memory, because copies of a program share it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from fxcompress.errors import IllFormed, first_line
from fxcompress.graph import walk
from fxcompress.graph.module import attach, detach, named_tensors, tied, used_names
from fxcompress.graph.signature import Holder

INHERITED = ("nn_module_stack", "stack_trace")
"""Metadata that a new node takes from its anchor, so that errors and listings still name the user's line."""


def set_tensor(program: Holder, name: str, tensor: torch.Tensor) -> None:
    """Replace a parameter or buffer under all its names; a parameter stays one, with its `requires_grad`."""
    old = walk.tensor(program, name)
    new = _like(old, tensor)
    for alias in walk.aliases(program, name):
        attach(program.module, alias, new)


def _like(old: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
    return tensor


def add_tensor(
    program: Holder, name: str, tensor: torch.Tensor, trainable: bool = False, after: fx.Node | None = None
) -> fx.Node:
    """Store a tensor under a new name and return its get_attr node, right `after` another one if that is
    given, else before the first operator.

    A name that is taken gets a number. The node has its `meta["val"]`.
    """
    taken = {existing for existing, _ in named_tensors(program.module)}
    unique, count = name, 0
    while unique in taken or hasattr(program.module, unique):
        count += 1
        unique = f"{name}_{count}"
    stored = nn.Parameter(tensor.detach()) if trainable else tensor.detach()
    attach(program.module, unique, stored)
    graph = program.module.graph
    with graph.inserting_before(_first_operator(graph)) if after is None else graph.inserting_after(after):
        node = graph.create_node("get_attr", unique, name=unique.replace(".", "_"))
    mode = _fake_mode(program)
    if mode is not None:
        node.meta["val"] = mode.from_tensor(stored, static_shapes=True)
    return node


def _first_operator(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))


def call_after(
    anchor: fx.Node,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    name: str | None = None,
) -> fx.Node:
    """A new operator call right after `anchor` (after the last input, if the anchor is one)."""
    graph = anchor.graph
    if anchor.op in ("placeholder", "get_attr"):
        return _call(graph.inserting_before(_first_operator(graph)), anchor, target, args, kwargs, name)
    return _call(graph.inserting_after(anchor), anchor, target, args, kwargs, name)


def call_before(
    anchor: fx.Node,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    name: str | None = None,
) -> fx.Node:
    """A new operator call right before `anchor`."""
    return _call(anchor.graph.inserting_before(anchor), anchor, target, args, kwargs, name)


def _call(
    place: contextlib.AbstractContextManager[Any],
    anchor: fx.Node,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    name: str | None,
) -> fx.Node:
    with place:
        node = anchor.graph.create_node("call_function", target, args, kwargs or {}, name=name)
    node.meta.update({key: anchor.meta[key] for key in INHERITED if key in anchor.meta})
    return node


def replace_uses(old: fx.Node, new: fx.Node, only: Collection[fx.Node] | None = None) -> list[fx.Node]:
    """Let the readers of `old` (all, or those in `only`) read `new`; `new` itself keeps reading `old`.

    Returns the readers that changed.
    """
    chosen = set(old.users) if only is None else set(only)
    chosen.discard(new)
    changed: list[fx.Node] = old.replace_all_uses_with(new, delete_user_cb=lambda user: user in chosen)
    return [node for node in changed if node in chosen]


def set_arg(node: fx.Node, index_or_name: int | str, value: Any) -> None:
    """Replace a positional argument (by position) or a keyword argument (by name).

    A position that the call leaves out is written, with the schema's defaults before it.
    """
    if isinstance(index_or_name, int):
        if index_or_name >= len(node.args):
            schema = node.target._schema.arguments  # type: ignore[union-attr]
            defaults = [item.default_value for item in schema[len(node.args) : index_or_name + 1]]
            node.args = (*node.args, *defaults)
        node.update_arg(index_or_name, value)
    else:
        node.update_kwarg(index_or_name, value)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Replace an operator's argument by its schema name, wherever it was passed."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index(name)
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)


def set_target(node: fx.Node, target: Callable[..., Any]) -> None:
    """Replace the operator a node calls."""
    node.target = target


def set_call(
    node: fx.Node,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> None:
    """Let a node call another operator; its name, its place and its readers stay."""
    node.target, node.args, node.kwargs = target, args, kwargs or {}


def erase(node: fx.Node) -> None:
    """Remove a node that nobody reads."""
    node.graph.erase_node(node)


def tidy(program: Holder) -> None:
    """Remove what nothing reads: operators, get_attr nodes, then tensors; check and recompile the graph."""
    graph = program.module.graph
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)
    used = used_names(graph.nodes)
    for names in tied(program.module).values():
        if used.isdisjoint(names):
            for name in names:
                detach(program.module, name)
    graph.lint()
    program.module.recompile()


def reinfer(program: Holder) -> None:
    """Compute `meta["val"]` of every node from the inputs' fake tensors, with the same symbols.

    Raises IllFormed naming the node and the user's line where shapes or types do not fit.
    """
    for node, val in infer(program):
        node.meta["val"] = val


def infer(program: Holder) -> Iterator[tuple[fx.Node, Any]]:
    """Every node with the fake value it should have; changes nothing."""
    mode = _fake_mode(program) or FakeTensorMode()
    env: dict[fx.Node, Any] = {}
    for node in program.module.graph.nodes:
        if node.op == "placeholder":
            env[node] = node.meta["val"]
        elif node.op == "get_attr":
            env[node] = mode.from_tensor(walk.tensor(program, node), static_shapes=True)
        elif node.op == "output":
            env[node] = fx.map_arg(node.args[0], env.__getitem__)
        else:
            env[node] = _infer_one(mode, node, env)
        yield node, env[node]


def annotate(node: fx.Node) -> None:
    """Give one operator call its `meta["val"]` from the metadata of its arguments; raises IllFormed."""
    values = {source: source.meta["val"] for source in node.all_input_nodes}
    fakes = [val for val in pytree.tree_leaves(list(values.values())) if isinstance(val, FakeTensor)]
    node.meta["val"] = _infer_one(fakes[0].fake_mode if fakes else FakeTensorMode(), node, values)


def _infer_one(mode: FakeTensorMode, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    if not callable(node.target):
        raise IllFormed(f"a node that calls no function: {node.op}", node=node.format_node())
    args = fx.map_arg(node.args, env.__getitem__)
    kwargs = fx.map_arg(node.kwargs, env.__getitem__)
    try:
        with torch.no_grad(), mode, enable_python_dispatcher():
            return node.target(*args, **kwargs)
    except Exception as error:
        raise IllFormed(
            f"the values that reach {node.name} do not fit it: {first_line(error)}",
            node=node.format_node(),
            source=walk.source(node),
        ) from error


def _fake_mode(program: Holder) -> FakeTensorMode | None:
    for node in walk.placeholders(program):
        val = node.meta.get("val")
        if isinstance(val, FakeTensor):
            return val.fake_mode
    return None
