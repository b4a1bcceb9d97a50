"""Remove operators that return their input.

    dropout(x, p, False)  =>  x          clone, contiguous, detach, alias (x)  =>  x
    to(x, dtype of x)     =>  x          view, reshape, expand, slice, ... to the shape x has  =>  x

The graph is functional and nothing in it sees strides, so a copy is its original. A reshape goes only where
the shapes are provably equal for every input: the same number, or the same symbolic expression. An operator
between an input and an output, or between two outputs, stays: an exported model's outputs are tensors of
their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import erase, replace_uses
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, source
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.shape_facts import same_sizes, value_of

aten = torch.ops.aten

DROPOUTS = frozenset(
    {
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.feature_alpha_dropout.default,
    }
)
COPIES = frozenset(
    {
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.detach_copy.default,
        aten.alias.default,
        aten.alias_copy.default,
        aten.lift.default,
        aten.lift_fresh.default,
        aten.lift_fresh_copy.default,
    }
)
CASTS = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten._to_copy.default,
        aten.type_as.default,
    }
)
# Operators that keep the elements in row-major order: where the shape stays, so does everything.
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
        aten.expand.default,
        aten.expand_as.default,
        aten.view_as.default,
        aten.reshape_as.default,
        aten.broadcast_to.default,
    }
)


@dataclass(frozen=True)
class RemoveIdentities:
    """Remove dropout in eval mode, copies, casts to the same dtype and reshapes to the same shape."""

    name: ClassVar[str] = "remove-identities"

    def run(self, program: Program) -> Outcome:
        """Return a program without operators that return their input."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for node in list(edited.graph.nodes):
            original = returned(node)
            if original is None:
                if trains(node):
                    declined.append(Decline(node.name, "in training mode: call .eval() first", source(node)))
                continue
            if separates_outputs(node, original):
                reason = "an output of the model must be a tensor of its own"
                declined.append(Decline(node.name, reason, source(node)))
                continue
            replace_uses(node, original)
            erase(node)
            changed.append(f"{node.name} is {original.name}")
        return outcome(program, edited, changed, declined)


def returned(node: Node) -> Node | None:
    """Return the input that a node returns unchanged, or None where that is not provable."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    original = node.args[0]
    before, after = value_of(original), value_of(node)
    if before is None or after is None or before.dtype != after.dtype or before.device != after.device:
        return None
    if not same_sizes(before.shape, after.shape):
        return None
    return original if _identity(node) else None


def trains(node: Node) -> bool:
    """Whether a node is a dropout that drops."""
    return node.op == "call_function" and node.target in DROPOUTS and not _passes_through(node)


def _identity(node: Node) -> bool:
    """Whether a node whose output has its input's dtype and shape is the identity."""
    if node.target in COPIES or node.target in CASTS or node.target in RESHAPES:
        return True
    check = CONDITIONAL.get(node.target)
    return check is not None and check(node)


def _passes_through(node: Node) -> bool:
    """dropout(x, p, train): nothing is dropped in eval mode or at p = 0."""
    return argument(node, "train") is False or argument(node, "p") == 0


def _keeps_order(node: Node) -> bool:
    """permute(x, [0, 1, 2, ...])."""
    dims = argument(node, "dims")
    return all(isinstance(dim, int) and dim % len(dims) == i for i, dim in enumerate(dims))


def _swaps_nothing(node: Node) -> bool:
    """transpose(x, i, i)."""
    value = value_of(node)
    first, second = argument(node, "dim0"), argument(node, "dim1")
    return value is not None and (value.dim() == 0 or first % value.dim() == second % value.dim())


def _takes_every(node: Node) -> bool:
    """slice(x, dim, start, end, 1): with as many elements as x has, it has them all."""
    return argument(node, "step") == 1


def _pads_nothing(node: Node) -> bool:
    """pad(x, [0, 0, ...]); a crop on one side with a pad on the other keeps the shape, but not the values."""
    return all(isinstance(amount, int) and amount == 0 for amount in argument(node, "pad"))


CONDITIONAL: dict[object, Callable[[Node], bool]] = {
    **dict.fromkeys(DROPOUTS, _passes_through),
    aten.permute.default: _keeps_order,
    aten.transpose.int: _swaps_nothing,
    aten.slice.Tensor: _takes_every,
    aten.pad.default: _pads_nothing,
    aten.constant_pad_nd.default: _pads_nothing,
}


def separates_outputs(node: Node, original: Node) -> bool:
    """Whether a node is an output of the model and its input is one too, or is an input or parameter."""
    outputs = [user for user in node.users if user.op == "output"]
    if not outputs:
        return False
    return original.op in ("placeholder", "get_attr") or any(user.op == "output" for user in original.users)
