"""The invariants of the canonical form, checked after capture and after every pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcompress.errors import IllFormed
from fxcompress.graph import edit, walk
from fxcompress.graph.module import named_tensors, same_tensor
from fxcompress.graph.operators import name_of
from fxcompress.graph.program import Program


def well_formed(program: Program) -> None:
    """Raise IllFormed naming the node when the program breaks an invariant.

    Checked: inputs, then tensors, then operators, then one output; functional operators of the allow-list;
    one get_attr node per tensor, each used; names and structures of the signature; metadata as inferred.
    """
    _check_order(program)
    _check_tensors(program)
    for node in program.graph.nodes:
        if node.op == "call_function":
            _check_target(node)
    _check_signature(program)
    _check_metadata(program)


def _ill(message: str, node: fx.Node | None = None) -> IllFormed:
    if node is None:
        return IllFormed(message)
    return IllFormed(message, node=node.format_node(), source=walk.source(node))


def _check_order(program: Program) -> None:
    ranks = {"placeholder": 0, "get_attr": 1, "call_function": 2, "output": 3}
    last = 0
    for node in program.graph.nodes:
        if node.op not in ranks:
            raise _ill(f"a {node.op} node does not belong in a program", node)
        if ranks[node.op] < last:
            raise _ill(f"{node.name} stands after an operator; inputs and tensors come first", node)
        last = ranks[node.op]
    try:
        program.graph.lint()
    except RuntimeError as error:
        raise IllFormed(f"the graph is inconsistent: {error}") from error


def _check_tensors(program: Program) -> None:
    seen: dict[tuple[object, ...], fx.Node] = {}
    for node in walk.tensor_nodes(program):
        try:
            tensor = walk.tensor(program, node)
        except AttributeError as error:
            raise _ill(f"{node.name} reads {node.target}, which does not exist", node) from error
        if not node.users:
            raise _ill(f"nothing reads {node.name}", node)
        key = same_tensor(tensor) if tensor.numel() else (node.target,)
        if key in seen:
            raise _ill(f"{node.name} and {seen[key].name} read the same tensor", node)
        seen[key] = node
    known = {same_tensor(walk.tensor(program, node)) for node in walk.tensor_nodes(program)}
    for name, tensor in named_tensors(program.module):
        if same_tensor(tensor) not in known:
            raise _ill(f"the tensor {name} is stored and nothing reads it")


def _check_target(node: fx.Node) -> None:
    if name_of(node.target) is None:
        raise _ill(f"{node.target} is not an operator a program may call", node)
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        raise _ill(f"{node.target} writes into its arguments", node)


def _check_signature(program: Program) -> None:
    signature = program.signature
    names = tuple(node.name for node in walk.placeholders(program))
    if names != signature.inputs:
        raise _ill(f"the signature names inputs {signature.inputs}, the graph has {names}")
    if len(walk.placeholders(program)) != signature.in_spec.num_leaves:
        raise _ill("the input structure does not have one leaf per input")
    output = walk.output_node(program)
    results = output.args[0]
    if not isinstance(results, tuple | list) or not all(
        isinstance(result, fx.Node) and walk.is_tensor(result) for result in results
    ):
        raise _ill("the output must be a tuple of tensors", output)
    if len(results) != len(signature.outputs) or len(results) != signature.out_spec.num_leaves:
        raise _ill(
            f"the signature names {len(signature.outputs)} outputs, the graph has {len(results)}", output
        )
    if len(set(signature.outputs)) != len(signature.outputs):
        raise _ill(f"two outputs share a name: {signature.outputs}", output)
    for node in walk.placeholders(program):
        _check_dynamic(node, dict(signature.dynamic.get(node.name, {})))


def _check_dynamic(node: fx.Node, dims: dict[int, str]) -> None:
    if not walk.is_tensor(node):
        raise _ill(f"the input {node.name} has no metadata", node)
    for dim in range(walk.value(node).ndim):
        if walk.is_symbolic(node, dim) != (dim in dims):
            state = "dynamic" if dim in dims else "fixed"
            raise _ill(
                f"dimension {dim} of {node.name} is {state} in the signature and not in the graph", node
            )


def _check_metadata(program: Program) -> None:
    for node, val in edit.infer(program):
        if node.op == "output":
            continue
        if "val" not in node.meta:
            raise _ill(f"{node.name} has no metadata", node)
        if _facts(node.meta["val"]) != _facts(val):
            raise _ill(
                f"{node.name} is {_facts(val)} by inference, its metadata says {_facts(node.meta['val'])}",
                node,
            )


def _facts(val: Any) -> Any:
    if isinstance(val, torch.Tensor):
        return (str(val.dtype), tuple(str(size) for size in val.shape))
    if isinstance(val, tuple | list):
        return tuple(_facts(item) for item in val)
    return str(val)
