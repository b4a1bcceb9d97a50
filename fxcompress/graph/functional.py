"""In-place operators become their out-of-place twins.

relu_(x), later uses of x => y = relu(x), later uses of y. Which values share memory is seen on fake tensors, so an
operator that sometimes returns its input (`dropout` in evaluation, `to`, `contiguous`) needs no table. Where another
view of the written memory is read later, the capture refuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcompress.errors import CaptureError
from fxcompress.graph import edit, walk
from fxcompress.graph.module import same_tensor
from fxcompress.graph.signature import Holder

_HINT = "write the model without this in-place operation, for example with torch.where, torch.cat or an `out = ...`"


def mutates(node: fx.Node) -> bool:
    """Whether a node writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def functionalize(program: Holder) -> None:
    """Rewrite every in-place call; raises CaptureError where a functional twin would be wrong."""
    graph = program.module.graph
    if not any(mutates(node) for node in graph.nodes):
        return
    memory = {node: _storages(val) for node, val in edit.infer(program)}
    for node in list(graph.nodes):
        if mutates(node):
            _rewrite(node, memory)


def _storages(val: Any) -> tuple[tuple[object, ...], ...]:
    """The memory a value occupies: one key per tensor in it, whose first element is the storage."""
    if isinstance(val, torch.Tensor):
        return (same_tensor(val),)
    if isinstance(val, tuple | list):
        return tuple(key for item in val for key in _storages(item))
    return ()


def _rewrite(node: fx.Node, memory: dict[fx.Node, tuple[tuple[object, ...], ...]]) -> None:
    target = _written(node)
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    key = memory[target][0]
    renamed: list[fx.Node] = []
    for other, keys in list(memory.items()):
        if other is node or not any(part[0] == key[0] for part in keys) or other not in order:
            continue
        if other.op == "get_attr":
            raise _refuse(node, "it writes into a parameter or buffer of the model")
        later = [user for user in other.users if order[user] > order[node]]
        if order[other] > order[node] or not later:
            continue
        if keys != (key,):
            raise _refuse(node, f"{other.name}, another view of the written tensor, is read later")
        renamed.append(other)
    new = _twin(node, target)
    for other in renamed:
        later = [user for user in other.users if order.get(user, -1) > order[node] and user is not node]
        edit.replace_uses(other, new, only=later)
    edit.replace_uses(node, new)
    edit.erase(node)
    memory[new] = (key,)
    del memory[node]


def _written(node: fx.Node) -> fx.Node:
    """The one argument that a node writes into."""
    schema = node.target._schema  # type: ignore[union-attr]
    written = [arg.name for arg in schema.arguments if arg.alias_info is not None and arg.alias_info.is_write]
    if len(written) != 1:
        raise _refuse(node, "it writes into several tensors")
    target = walk.argument(node, written[0])
    if not isinstance(target, fx.Node):
        raise _refuse(node, "it writes into several tensors")
    return target


def _twin(node: fx.Node, target: fx.Node) -> fx.Node:
    """The out-of-place call, placed before `node`."""
    aten = torch.ops.aten
    overload = node.target
    name = overload._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    if name == "copy_":
        return _copy(node, target)
    if name == "zero_":
        return edit.call_before(node, aten.zeros_like.default, (target,))
    if name == "fill_":
        return edit.call_before(node, aten.full_like.default, (target, node.args[1]))
    packet = getattr(aten, name.removesuffix("_"), None)
    twin = getattr(packet, overload._overloadname, None)  # type: ignore[union-attr]
    if not name.endswith("_") or twin is None or twin._schema.is_mutable:
        raise _refuse(node, "it has no out-of-place form")
    wanted = walk.value(target).dtype
    new = edit.call_before(node, twin, node.args, dict(node.kwargs), name=name.removesuffix("_"))
    return new if wanted == _result_type(node, new) else edit.call_before(node, aten.to.dtype, (new, wanted))


def _result_type(node: fx.Node, new: fx.Node) -> torch.dtype:
    """The type that the out-of-place call returns; the in-place call casts it back to its target's."""
    from_fake = new.target(  # type: ignore[operator]
        *fx.map_arg(new.args, lambda arg: arg.meta["val"]), **fx.map_arg(dict(new.kwargs), lambda arg: arg.meta["val"])
    )
    new.meta["val"] = from_fake
    return walk.value(new).dtype


def _copy(node: fx.Node, target: fx.Node) -> fx.Node:
    """copy_(target, source) => source, cast and expanded to the target's type and shape."""
    aten = torch.ops.aten
    source = node.args[1]
    if not isinstance(source, fx.Node):
        raise _refuse(node, "its source is not a tensor")
    return edit.call_before(node, aten.copy.default, (target, source))


def _refuse(node: fx.Node, reason: str) -> CaptureError:
    return CaptureError(
        f"an in-place operation cannot be captured: {reason}",
        node=node.format_node(), source=walk.source(node), hint=_HINT,
    )
