"""Inline the higher-order wrappers that change nothing: `no_grad` regions, and autocast that is off."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fxcompress.errors import CaptureError
from fxcompress.graph import walk

_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled


def inline_wrappers(module: fx.GraphModule) -> None:
    """Replace each wrapper call by the graph it wraps, innermost last; raises CaptureError for the others."""
    graph = module.graph
    pending = True
    while pending:
        pending = False
        for node in list(graph.nodes):
            if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
                continue
            body, inputs = _body(node)
            _inline(module, node, body, inputs)
            pending = True
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users and isinstance(_attribute(module, node), fx.GraphModule):
            graph.erase_node(node)


def _body(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]]:
    """The get_attr node of the wrapped graph, and its inputs."""
    name = node.target.name() if hasattr(node.target, "name") else str(node.target)
    if node.target is _GRAD:
        return node.args[1], node.args[2:]  # type: ignore[return-value]
    if "autocast" in name:
        _device, _dtype, enabled, _cache, body, *inputs = node.args
        if enabled is False:
            return body, tuple(inputs)  # type: ignore[return-value]
        raise CaptureError(
            "the model runs a region under autocast, whose casts a graph does not show",
            node=node.format_node(),
            source=walk.source(node),
            hint="remove torch.autocast from the model, or write its casts as .to(dtype)",
        )
    raise CaptureError(
        f"the model uses {name}, a control-flow operator that cannot be inlined",
        node=node.format_node(),
        source=walk.source(node),
        hint="write this part without torch.cond, while_loop, map or checkpoint",
    )


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    owner: Any = module
    for part in str(node.target).split("."):
        owner = getattr(owner, part)
    return owner


def _inline(module: fx.GraphModule, call: fx.Node, body: fx.Node, inputs: tuple[Any, ...]) -> None:
    inner = _attribute(module, body)
    graph = module.graph
    values: dict[fx.Node, Any] = {}
    feed = iter(inputs)
    with graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(feed)
            elif node.op == "output":
                result = fx.map_arg(node.args[0], values.__getitem__)
            elif node.op == "get_attr":
                values[node] = _lift(module, inner, node)
            else:
                values[node] = graph.node_copy(node, values.__getitem__)
    if not isinstance(result, tuple | list):
        call.replace_all_uses_with(result)
    for user in list(call.users):
        if user.target is not operator.getitem:
            raise CaptureError("a wrapped region is used in an unknown way", node=user.format_node())
        user.replace_all_uses_with(result[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(call)


def _lift(module: fx.GraphModule, inner: fx.GraphModule, node: fx.Node) -> fx.Node:
    """A get_attr of the outer module for what a wrapped graph reads from its own."""
    value = _attribute(inner, node)
    name = str(node.target).replace(".", "_")
    while hasattr(module, name) and getattr(module, name) is not value:
        name += "_"
    if isinstance(value, fx.GraphModule):
        module.add_module(name, value)
    elif not hasattr(module, name):
        module.register_buffer(name, value)
    created: fx.Node = module.graph.create_node("get_attr", name)
    created.meta.update(node.meta)
    return created
