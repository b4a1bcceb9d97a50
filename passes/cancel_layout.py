"""Layout operators in a row become one, or none where they cancel.

    transpose(transpose(x, 1, 2), 1, 2)               =>   x
    permute(permute(x, [0, 2, 3, 1]), [0, 2, 1, 3])   =>   permute(x, [0, 3, 2, 1])
    reshape(flatten(x, 2), [N, C, H, W])              =>   x  or one reshape
    transpose(relu(transpose(x, 1, 2)), 1, 2)         =>   relu(x)

Reshapes are operators that keep the elements in row-major order (flatten, squeeze, unsqueeze, ...). Two of
them become one where at most one size of the result varies, which is then written as -1. Between two
permutations that cancel there may be operators on single elements, each with one reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import annotate, erase, replace_uses, set_arg, set_call
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, source, value, varies
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.remove_identities import separates_outputs
from fxcompress.passes.shape_facts import operand, same_sizes, value_of

aten = torch.ops.aten

PERMUTATIONS = frozenset(
    {aten.permute.default, aten.transpose.int, aten.mT.default, aten.t.default, aten.numpy_T.default}
)
RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
    }
)
ELEMENTWISE = frozenset(
    {
        aten.relu.default,
        aten.relu6.default,
        aten.hardtanh.default,
        aten.hardswish.default,
        aten.hardsigmoid.default,
        aten.gelu.default,
        aten.silu.default,
        aten.mish.default,
        aten.elu.default,
        aten.leaky_relu.default,
        aten.softplus.default,
        aten.sigmoid.default,
        aten.tanh.default,
        aten.exp.default,
        aten.neg.default,
        aten.abs.default,
        aten.sqrt.default,
        aten.rsqrt.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.pow.Tensor_Scalar,
        aten.add.Scalar,
        aten.mul.Scalar,
        aten.div.Scalar,
        aten.sub.Scalar,
        aten.to.dtype,
    }
)
"""Operators of one tensor that treat every element alike."""


@dataclass(frozen=True)
class CancelLayout:
    """Compose permutations and reshapes in a row; remove those that cancel."""

    name: ClassVar[str] = "cancel-layout"

    def run(self, program: Program) -> Outcome:
        """Return a program without layout operators that others undo."""
        edited = program.copy()
        changed: list[str] = []
        declined: dict[str, Decline] = {}
        while steps := list(_round(edited, declined)):
            changed += steps
        return outcome(program, edited, changed, declined.values())


def _round(program: Program, declined: dict[str, Decline]) -> Iterator[str]:
    """Apply the rules once to every node; yields what was done."""
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        done = None
        if node.target in PERMUTATIONS:
            done = _permute(node, declined)
        elif node.target in RESHAPES:
            done = _reshape(node, declined)
        if done is not None:
            yield done


def order_of(node: Node) -> list[int]:
    """For every axis of a permutation's output, the axis of its input."""
    rank = value(node).dim()
    if node.target == aten.permute.default:
        return [int(dim) % rank for dim in argument(node, "dims")]
    order = list(range(rank))
    if node.target == aten.transpose.int:
        first, second = (int(argument(node, name)) % max(rank, 1) for name in ("dim0", "dim1"))
        order[first], order[second] = order[second], order[first]
        return order
    if node.target == aten.mT.default:
        return [*order[:-2], rank - 1, rank - 2]
    return order[::-1]


def _permute(node: Node, declined: dict[str, Decline]) -> str | None:
    """Compose a permutation with the one before it, past elementwise operators where both cancel."""
    between: list[Node] = []
    before = operand(node)
    while before is not None and before.target in ELEMENTWISE and len(before.users) == 1:
        between.append(before)
        before = operand(before)
    if before is None or before.target not in PERMUTATIONS:
        return None
    x = operand(before)
    assert x is not None
    inner = order_of(before)
    order = [inner[dim] for dim in order_of(node)]
    if order == list(range(len(order))):
        return _cancel(node, before, x, between, declined)
    if between or len(before.users) > 1:
        return None
    set_call(node, aten.permute.default, (x, order))
    erase(before)
    return f"{before.name} and {node.name} are one"


def _cancel(
    node: Node, before: Node, x: Node, between: Sequence[Node], declined: dict[str, Decline]
) -> str | None:
    """Let what reads the second permutation read what the first one read."""
    if between:
        if len(before.users) > 1:
            return None
        set_arg(between[-1], 0, x)
        for middle in reversed(between):
            annotate(middle)
        result = between[0]
    else:
        result = x
        if separates_outputs(node, x):
            declined[node.name] = Decline(
                node.name, "an output of the model must be a tensor of its own", source(node)
            )
            return None
    replace_uses(node, result)
    erase(node)
    if not before.users:
        erase(before)
    return f"{before.name} and {node.name} cancel"


def _reshape(node: Node, declined: dict[str, Decline]) -> str | None:
    """Compose a reshape with the one before it."""
    before = operand(node)
    if before is None or before.target not in RESHAPES:
        return None
    x = operand(before)
    if x is None or value_of(x) is None:
        return None
    if same_sizes(value(x).shape, value(node).shape):
        return _cancel(node, before, x, (), declined)
    sizes = value(node).shape
    free = [place for place, size in enumerate(sizes) if varies(size)]
    if len(before.users) > 1 or len(free) > 1 or any(not varies(size) and int(size) == 0 for size in sizes):
        return None
    shape = [-1 if varies(size) else int(size) for size in sizes]
    set_call(node, aten.reshape.default, (x, shape))
    erase(before)
    return f"{before.name} and {node.name} are one"
