"""Fold what depends on no input and on nothing that is trained into stored constants.

Sources are factory calls (`arange`, `full`, ...), tensors written as constants in the model, and its integer
and boolean buffers. Parameters and floating buffers are not sources: what depends on them may be pruned or
trained.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program

aten = torch.ops.aten

LIMIT = 64 << 20
"""Bytes that folding may add to a program in total; constants beyond stay computed."""

_TEMPLATED = frozenset(
    {
        aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
        aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
    }
)  # fmt: skip
"""Factories that read only the type and shape of their first argument."""


def fold_constants(program: Program, lifted: Collection[str] = ()) -> bool:
    """Replace the last nodes of constant subgraphs by stored tensors; returns whether there were any.

    A note says what exceeded the limit.
    """
    constant = _constant_nodes(program, lifted)
    frontier = [
        node
        for node in program.graph.nodes
        if node in constant
        and node.op == "call_function"
        and walk.is_tensor(node)
        and any(user not in constant for user in node.users)
    ]
    if not frontier:
        return False
    values = _evaluate(program, constant)
    spent = 0
    for node in frontier:
        tensor = values[node].contiguous().clone()
        spent += tensor.nbytes
        if spent > LIMIT:
            spent -= tensor.nbytes
            program.notes.append(f"the constant {node.name} stays computed: {tensor.nbytes >> 20} MiB")
            continue
        stored = edit.add_tensor(program, f"constant_{node.name}", tensor)
        stored.meta.update({key: node.meta[key] for key in edit.INHERITED if key in node.meta})
        edit.replace_uses(node, stored)
    return True


def _constant_nodes(program: Program, lifted: Collection[str]) -> set[fx.Node]:
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            if node.target in lifted or not walk.dtype(node).is_floating_point:
                constant.add(node)
        elif node.op == "call_function" and not _kept(node) and _concrete(node.meta.get("val")):
            skip = 1 if node.target in _TEMPLATED else 0
            if constant.issuperset(node.all_input_nodes[skip:]):
                constant.add(node)
    return constant


def _kept(node: fx.Node) -> bool:
    """Whether a node runs in every call: it draws numbers, or its integers are stored to save space."""
    tags = getattr(node.target, "tags", ())
    stored = getattr(node.target, "namespace", "") == "quantized_decomposed"
    return stored or torch.Tag.nondeterministic_seeded in tags


def _concrete(val: Any) -> bool:
    """Whether a value has no symbolic size."""
    if isinstance(val, torch.Tensor):
        return not any(walk.varies(size) for size in val.shape)
    if isinstance(val, tuple | list):
        return all(_concrete(item) for item in val)
    return not isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool)


def _evaluate(program: Program, constant: set[fx.Node]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node not in constant:
                continue
            if node.op == "get_attr":
                values[node] = walk.tensor(program, node)
            else:
                known = {source: values.get(source) for source in node.all_input_nodes}
                if node.target in _TEMPLATED:
                    known[node.all_input_nodes[0]] = _template(node)
                args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return values


def _template(node: fx.Node) -> torch.Tensor:
    """A tensor of the first argument's type, with the shape of the result, that holds one element."""
    source, result = walk.value(node.all_input_nodes[0]), walk.value(node)
    return torch.zeros((), dtype=source.dtype, device=source.device).expand(
        walk.hint_shape(node) if result.ndim else ()
    )
