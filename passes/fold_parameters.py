"""Compute what depends on parameters alone once, and store the result.

    conv(x, weight_norm(g, v))          =>   conv(x, w)
    scores + permute(table[index])      =>   scores + bias
    addmm(b, x, permute(W, [1, 0]))     =>   addmm(b, x, Wt)

The operators are evaluated as they are, in the dtype they have, so the folded program computes the same bits.
What stays: operators that draw random numbers or keep state, the dequantization of stored integers (folding
it would turn the integers back into floats), and results much larger than the parameters they free, such as
an expanded vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.graph.edit import add_tensor, reinfer, replace_uses, tidy
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, module_path, source, tensor
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.passes.remove_identities import trains
from fxcompress.passes.shape_facts import value_of

aten = torch.ops.aten

# Operators with state of their own: a batch norm in training mode moves its running statistics.
STATEFUL = frozenset(
    {aten.batch_norm.default, aten._native_batch_norm_legit.default, aten.native_batch_norm.default}
)


@dataclass(frozen=True)
class FoldParameters:
    """Fold subgraphs of parameters into stored tensors.

    A result is kept as a computation when it is more than ``max_growth`` times larger than the parameters
    that folding it frees and larger than ``small`` bytes.
    """

    max_growth: float = 4.0
    small: int = 1 << 20

    name: ClassVar[str] = "fold-parameters"

    def run(self, program: Program) -> Outcome:
        """Return a program whose parameter-only computations are stored tensors."""
        declined: dict[str, Decline] = {}
        folds = self._decide(program, declined)
        if not folds:
            return Outcome(program, (), tuple(declined.values()))
        edited = program.copy()
        values = _Values(edited)
        nodes = {node.name: node for node in edited.graph.nodes}
        changed = []
        for name in folds:
            node = nodes[name]
            trainable = any(tensor(edited, leaf).requires_grad for leaf in _leaves(node))
            stored = add_tensor(edited, _stored_name(node), values[node], trainable=trainable)
            replace_uses(node, stored)
            changed.append(f"{name} stored as {stored.target}")
        tidy(edited)
        reinfer(edited)
        return Outcome(edited, tuple(changed), tuple(declined.values()))

    def _decide(self, program: Program, declined: dict[str, Decline]) -> list[str]:
        """Return the names of the nodes to store, in graph order; sites too large go to ``declined``."""
        while True:
            constant = _constant(program, frozenset(declined))
            frontier = [
                node for node in program.graph.nodes if node in constant and _leaves_region(node, constant)
            ]
            frontier = [
                node for node in frontier if node.op == "call_function" and value_of(node) is not None
            ]
            refused = [node for node in frontier if self._too_large(node, constant)]
            if not refused:
                return [node.name for node in frontier]
            for node in refused:
                reason = f"storing it takes {_bytes(node)} bytes and frees {_freed(node, constant)}"
                declined[node.name] = Decline(node.name, reason, source(node))

    def _too_large(self, node: Node, constant: set[Node]) -> bool:
        size, freed = _bytes(node), _freed(node, constant)
        if size >= freed and any(_is_packed(leaf) for leaf in _leaves(node)):
            return True
        return size > self.small and size > self.max_growth * freed


def _is_packed(leaf: Node) -> bool:
    """Whether a tensor is a weight that is stored small on purpose."""
    value = value_of(leaf)
    return value is not None and value.dtype in _PACKED and value.numel() >= _WEIGHT


_PACKED = (torch.float16, torch.bfloat16, torch.int8, torch.uint8)
_WEIGHT = 1024
"""Elements from which a tensor counts as a weight."""


def _constant(program: Program, excluded: frozenset[str]) -> set[Node]:
    """Return the stored tensors and every operator that depends on nothing else and may be computed once."""
    constant: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor):
            constant.add(node)
        elif node.op == "call_function" and node.name not in excluded and is_pure(node):
            inputs = node.all_input_nodes
            if inputs and all(source_node in constant for source_node in inputs):
                constant.add(node)
    return constant


def is_pure(node: Node) -> bool:
    """Whether computing a node once is the same as computing it in every call."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if target.namespace == "quantized_decomposed" or target._schema.is_mutable:
            return False
        if torch.Tag.nondeterministic_seeded in target.tags or trains(node):
            return False
        return target not in STATEFUL or not argument(node, "training", False)
    return not node.is_impure()


def _leaves_region(node: Node, constant: set[Node]) -> bool:
    return any(user not in constant for user in node.users)


def _leaves(node: Node) -> Iterator[Node]:
    """Yield the stored tensors that a node depends on, each once."""
    return (item for item in _region(node) if item.op == "get_attr")


def _region(node: Node) -> set[Node]:
    """A node and all that it depends on."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack.extend(current.all_input_nodes)
    return seen


def _freed(node: Node, constant: set[Node]) -> int:
    """Return the bytes of the stored tensors under ``node`` that nothing outside the constant region uses."""
    return sum(_bytes(leaf) for leaf in _leaves(node) if not _leaves_region(leaf, constant))


def _bytes(node: Node) -> int:
    value = value_of(node)
    return 0 if value is None else int(value.numel()) * value.element_size()


def _stored_name(node: Node) -> str:
    """Return the folded tensor's name, in the module that computed it; the prefix avoids submodules."""
    path = module_path(node)
    return f"{path}.folded_{node.name}" if path else f"folded_{node.name}"


class _Values:
    """The values of constant nodes, computed when asked for and kept."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._known: dict[Node, Any] = {}

    def __getitem__(self, node: Node) -> Tensor:
        value = self._evaluate(node)
        assert isinstance(value, Tensor)  # the frontier holds tensors only
        return value.detach().clone(memory_format=torch.contiguous_format)

    def _evaluate(self, node: Node) -> Any:
        for earlier in sorted(_region(node) - self._known.keys()):  # in graph order, so chains may be long
            if earlier.op == "get_attr":
                self._known[earlier] = tensor(self._program, earlier)
            else:
                args = torch.fx.map_arg(earlier.args, self._known.__getitem__)
                kwargs = torch.fx.map_arg(earlier.kwargs, self._known.__getitem__)
                with torch.no_grad():
                    self._known[earlier] = earlier.target(*args, **kwargs)  # type: ignore[operator]
        return self._known[node]
