"""In-place operators become their out-of-place twins.

y = relu_(x); later uses of x => y = relu(x); later uses of y. Writing through a view rewrites what it was
viewed from: y[:, 0] = v => slice or select scattered back into y, and the other views of y taken again.
Which values share memory is seen on fake tensors, so an operator that only sometimes returns its input
(`dropout` in evaluation, `to`, `contiguous`) needs no table. Where a view cannot be inverted, or a parameter
is written, the capture refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fxcompress.errors import CaptureError
from fxcompress.graph import edit, walk
from fxcompress.graph.module import same_tensor
from fxcompress.graph.signature import Holder

aten = torch.ops.aten

_HINT = (
    "write the model without this in-place operation, for example with torch.where, torch.cat or `out = ...`"
)
_RESHAPES = frozenset(
    {
        aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
        aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    }
)  # fmt: skip
"""Views of all elements in the same order: undone by a reshape."""

Memory = tuple[tuple[object, ...], ...]
"""What a value occupies: one key per tensor in it, whose first element is the storage."""


def mutates(node: fx.Node) -> bool:
    """Whether a node writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def functionalize(program: Holder) -> list[str]:
    """Rewrite every in-place call and return notes; raises CaptureError where that would be wrong.

    Every node must have its metadata; new nodes get theirs.
    """
    graph = program.module.graph
    writes = [node for node in graph.nodes if mutates(node)]
    if not writes:
        return []
    memory = _memory(program)
    notes: list[str] = []
    for node in writes:
        note = _Write(node, memory).rewrite()
        if note and note not in notes:
            notes.append(note)
    return notes


def _memory(program: Holder) -> dict[fx.Node, Memory]:
    """What every value occupies when the graph runs with the example's sizes.

    Run without the Python dispatcher, whose decompositions copy where the real operators return their input.
    """
    mode = FakeTensorMode()
    values: dict[fx.Node, Any] = {}
    memory: dict[fx.Node, Memory] = {}
    with torch.no_grad(), mode:
        for node in program.module.graph.nodes:
            if node.op == "placeholder":
                val = walk.value(node)
                values[node] = torch.empty(walk.hint_shape(node), dtype=val.dtype, device=val.device)
            elif node.op == "get_attr":
                values[node] = mode.from_tensor(walk.tensor(program, node))
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                try:
                    values[node] = node.target(*args, **kwargs)
                except DataDependentOutputException as error:
                    raise _depends_on_values(node) from error
            memory[node] = _occupied(values.get(node))
    return memory


def _depends_on_values(node: fx.Node) -> CaptureError:
    return CaptureError(
        "the model reads a number from a tensor, so that its graph depends on data",
        node=node.format_node(),
        source=walk.source(node),
        hint="leave the dimension that the number is made of static, or keep it a tensor",
    )


def _occupied(val: Any) -> Memory:
    if isinstance(val, torch.Tensor):
        return (same_tensor(val),)
    if isinstance(val, tuple | list):
        return tuple(key for item in val for key in _occupied(item))
    return ()


@dataclass
class _Write:
    """One in-place call and the memory of every value before it."""

    node: fx.Node
    memory: dict[fx.Node, Memory]

    def rewrite(self) -> str | None:
        """Replace the call; a note when the model overwrites its own input."""
        target = self._target()
        if torch.Tag.inplace_view in self.node.target.tags:  # type: ignore[union-attr]
            self._replace_later({target: self._twin(target)})
            return None
        root, chain = self._chain(target)
        if root.op == "get_attr":
            raise self._refuse("it writes into a parameter or buffer of the model")
        stale = self._stale(target)
        versions = {target: self._twin(target)}
        for viewed, view in chain if any(node is not target for node in stale) else []:
            versions[viewed] = self._undo(view, viewed, versions[view])
        for node in stale:
            self._renew(node, target, versions)
        self._replace_later({node: versions[node] for node in [target, *stale]})
        return (
            f"the model overwrites its input {root.name}; the program leaves it" if _is_input(root) else None
        )

    def _target(self) -> fx.Node:
        """The one argument that the call writes into."""
        schema = self.node.target._schema  # type: ignore[union-attr]
        written = [
            arg.name for arg in schema.arguments if arg.alias_info is not None and arg.alias_info.is_write
        ]
        target = walk.argument(self.node, written[0]) if len(written) == 1 else None
        if not isinstance(target, fx.Node):
            raise self._refuse("it writes into several tensors")
        return target

    def _viewed(self, node: fx.Node) -> fx.Node | None:
        """The argument that a node's value is a view of."""
        storage = self.memory[node][0][0]
        for source in node.all_input_nodes:
            if any(key[0] == storage for key in self.memory[source]):
                return source
        return None

    def _chain(self, target: fx.Node) -> tuple[fx.Node, list[tuple[fx.Node, fx.Node]]]:
        """The value that owns the memory, and the (viewed, view) steps from the target up to it."""
        chain: list[tuple[fx.Node, fx.Node]] = []
        view = target
        while (viewed := self._viewed(view)) is not None:
            chain.append((viewed, view))
            view = viewed
        return view, chain

    def _stale(self, target: fx.Node) -> list[fx.Node]:
        """Values made before the call that share the written memory and are read after it, in graph order."""
        storage = self.memory[target][0][0]
        return [
            node
            for node in self.node.graph.nodes
            if node is not self.node
            and node < self.node
            and any(key[0] == storage for key in self.memory.get(node, ()))
            and any(user > self.node for user in node.users)
        ]

    def _renew(self, node: fx.Node, target: fx.Node, versions: dict[fx.Node, fx.Node]) -> fx.Node:
        """The value of `node` after the write: the same view of what it views, as that is now."""
        if node in versions:
            return versions[node]
        if self.memory[node] == self.memory[target]:
            versions[node] = versions[target]
            return versions[target]
        viewed = self._viewed(node)
        if viewed is None:
            raise self._refuse(f"it writes through a view into {node.name}, which is read later")
        new_viewed = self._renew(viewed, target, versions)
        args = fx.map_arg(node.args, lambda arg: new_viewed if arg is viewed else arg)
        versions[node] = self._new(node.target, args, node.kwargs, like=node)
        return versions[node]

    def _undo(self, view: fx.Node, viewed: fx.Node, new: fx.Node) -> fx.Node:
        """What `viewed` is once its part `view` has become `new`."""
        if self.memory[view] == self.memory[viewed]:
            return new
        rest = view.args[1:]
        if view.target is aten.select.int:
            return self._new(aten.select_scatter.default, (viewed, new, *rest), like=viewed)
        if view.target is aten.slice.Tensor:
            return self._new(aten.slice_scatter.default, (viewed, new, *rest), like=viewed)
        if view.target is aten.transpose.int:
            return self._new(aten.transpose.int, (new, *rest), like=viewed)
        if view.target is aten.permute.default:
            order = list(view.args[1])  # type: ignore[arg-type]
            back = [order.index(dim) for dim in range(len(order))] if min(order) >= 0 else None
            if back is not None:
                return self._new(aten.permute.default, (new, back), like=viewed)
        if view.target in _RESHAPES:
            return self._new(aten.reshape.default, (new, self._sizes(viewed)), like=viewed)
        raise self._refuse(f"it writes through {view.name} into {viewed.name}, which is read later")

    def _sizes(self, node: fx.Node) -> list[Any]:
        """The sizes of a value as arguments: numbers, and nodes for symbolic ones."""
        return [
            self._new(aten.sym_size.int, (node, dim)) if isinstance(size, torch.SymInt) else size
            for dim, size in enumerate(walk.shape(node))
        ]

    def _twin(self, target: fx.Node) -> fx.Node:
        """The out-of-place call: a value of the target's shape and type."""
        overload: Any = self.node.target
        name = overload._schema.name.removeprefix("aten::")
        if name == "copy_":
            return self._copied(target)
        if name in ("zero_", "fill_"):
            value = self.node.args[1] if name == "fill_" else 0
            if isinstance(value, fx.Node):
                return self._fit(value, target)
            return self._new(aten.full_like.default, (target, value), like=target)
        twin = getattr(getattr(aten, name.removesuffix("_"), None), overload._overloadname, None)
        if not name.endswith("_") or twin is None or twin._schema.is_mutable:
            raise self._refuse("it has no out-of-place form")
        new = self._new(twin, self.node.args, self.node.kwargs, name=name.removesuffix("_"))
        if torch.Tag.inplace_view not in overload.tags:
            new = self._fit(new, target)
        self.memory[new] = self.memory[target]
        return new

    def _copied(self, target: fx.Node) -> fx.Node:
        """copy_(target, source) => source, cast and expanded to the target."""
        source = self.node.args[1]
        if not isinstance(source, fx.Node):
            raise self._refuse("its source is not a tensor")
        return self._fit(source, target)

    def _fit(self, value: fx.Node, target: fx.Node) -> fx.Node:
        """A value cast and expanded to the target's type and shape, as an in-place call stores it."""
        if walk.dtype(value) != walk.dtype(target):
            value = self._new(aten.to.dtype, (value, walk.dtype(target)), like=target)
        if walk.shape(value) != walk.shape(target):
            value = self._new(aten.expand.default, (value, self._sizes(target)), like=target)
        return value

    def _new(
        self,
        target: Any,
        args: Any,
        kwargs: Any = None,
        *,
        like: fx.Node | None = None,
        name: str | None = None,
    ) -> fx.Node:
        new = edit.call_before(self.node, target, tuple(args), dict(kwargs or {}), name=name)
        edit.annotate(new)
        self.memory[new] = self.memory[like] if like is not None else ()
        return new

    def _replace_later(self, versions: dict[fx.Node, fx.Node]) -> None:
        """Let everything behind the call read the new values, and remove the call."""
        result = next(iter(versions.values()))
        for old, new in versions.items():
            edit.replace_uses(old, new, only=[user for user in old.users if user > self.node])
        edit.replace_uses(self.node, result)
        edit.erase(self.node)
        del self.memory[self.node]

    def _refuse(self, reason: str) -> CaptureError:
        return CaptureError(
            f"an in-place operation cannot be captured: {reason}",
            node=self.node.format_node(),
            source=walk.source(self.node),
            hint=_HINT,
        )


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder"
