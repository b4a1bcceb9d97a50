"""Operators that compute the same from the same are computed once.

    a = relu(x); b = relu(x); add(a, b)   =>   a = relu(x); add(a, a)

The same operator on the same inputs with the same arguments, in graph order. What draws random numbers, keeps
state or makes uninitialised memory is never the same twice. Two outputs of the model stay two tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import erase, replace_uses
from fxcompress.graph.program import Program
from fxcompress.graph.walk import source
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.fold_parameters import is_pure

aten = torch.ops.aten


@dataclass(frozen=True)
class RemoveDuplicates:
    """Compute common subexpressions once."""

    name: ClassVar[str] = "remove-duplicates"

    def run(self, program: Program) -> Outcome:
        """Return a program that computes nothing twice."""
        edited = program.copy()
        known: dict[Any, Node] = {}
        changed: list[str] = []
        declined: list[Decline] = []
        for node in list(edited.graph.nodes):
            if node.op != "call_function" or not _repeatable(node):
                continue
            first = known.setdefault(_key(node), node)
            if first is node:
                continue
            if _is_output(first) and _is_output(node):
                reason = "an output of the model must be a tensor of its own"
                declined.append(Decline(node.name, reason, source(node)))
                continue
            replace_uses(node, first)
            erase(node)
            changed.append(f"{node.name} is {first.name}")
        return outcome(program, edited, changed, declined)


def _repeatable(node: Node) -> bool:
    """Whether calling an operator twice gives the same values twice."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and "empty" in target._schema.name:
        return False
    return is_pure(node)


def _is_output(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _key(node: Node) -> Any:
    """What two calls that compute the same have in common."""
    return node.target, _frozen(node.args), _frozen(dict(node.kwargs))


def _frozen(given: Any) -> Any:
    """An argument as something that can be looked up; 1, 1.0 and True are different, and so are 0 and -0."""
    if isinstance(given, Node):
        return given
    if isinstance(given, list | tuple):
        return tuple(_frozen(item) for item in given)
    if isinstance(given, dict):
        return tuple((key, _frozen(given[key])) for key in sorted(given))
    if isinstance(given, slice):
        return slice, _frozen(given.start), _frozen(given.stop), _frozen(given.step)
    return type(given), repr(given)
