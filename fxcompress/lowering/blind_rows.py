"""Attention under a stored mask some of whose rows see nothing.

    y = attention(q, k, v, mask)   =>   y = masked_fill(attention(q, k, v, opened mask), blind rows, 0)

In torch a row that sees nothing is zero. Written as it stands, a stored mask is folded into the file before
our rewrites see it (`mask_forms`): as the lowest number, which gives the mean of all values, or as minus
infinity, which gives NaN. What is computed for the open rows is not used. The mask may be sliced, expanded or
computed of stored tensors; blind rows and the open mask are computed of it, and folded with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program

aten = torch.ops.aten

ATTENTION = aten.scaled_dot_product_attention.default


def open_blind_rows(program: Program) -> Program:
    """The program with every row of a stored mask seeing something; itself where all do."""
    masks = _Stored(program)
    if not any(masks.hide(node) for node in program.graph.nodes):
        return program
    copy = program.copy()
    masks = _Stored(copy)
    for node in [node for node in copy.graph.nodes if masks.hide(node)]:
        _open(node)
    edit.tidy(copy)
    edit.reinfer(copy)
    return copy


class _Stored:
    """What tensors are that are computed of stored ones alone, each evaluated once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: dict[fx.Node, tuple[Tensor, bool] | None] = {}

    def hide(self, node: fx.Node) -> bool:
        """Whether an attention has a stored mask with a row that sees nothing."""
        mask = walk.argument(node, "attn_mask") if node.target is ATTENTION else None
        found = self.value(mask) if isinstance(mask, fx.Node) else None
        if found is None or not found[0].dim():
            return False
        stored = found[0]
        closed = stored.logical_not() if stored.dtype == torch.bool else stored == float("-inf")
        return bool(closed.all(-1).any())

    def value(self, node: fx.Node) -> tuple[Tensor, bool] | None:
        """A tensor's value and True; or, where that takes a size that is not known (a slice, an expansion),
        what it is made of, which has its rows and perhaps more, and False. None for what depends on inputs.
        """
        if node not in self.known:
            self.known[node] = self._evaluated(node)
        return self.known[node]

    def _evaluated(self, node: fx.Node) -> tuple[Tensor, bool] | None:
        if node.op == "get_attr":
            return walk.tensor(self.program, node).detach(), True
        tensors = [source for source in node.all_input_nodes if walk.is_tensor(source)]
        values = {source: found for source in tensors if (found := self.value(source)) is not None}
        if node.op != "call_function" or not walk.is_tensor(node) or len(values) < max(len(tensors), 1):
            return None
        if len(tensors) == len(node.all_input_nodes) and all(exact for _, exact in values.values()):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source][0])
            with torch.no_grad():
                return node.target(*args, **kwargs), True  # type: ignore[operator]
        return (values[tensors[0]][0], False) if len(tensors) == 1 else None


def _open(node: fx.Node) -> None:
    """Let the attention see open rows, and the node be what is left of it."""
    mask = walk.argument(node, "attn_mask")
    assert isinstance(mask, fx.Node)
    attention = edit.call_before(node, ATTENTION, node.args, dict(node.kwargs), name=f"{node.name}_open")
    if walk.dtype(mask) == torch.bool:
        closed = edit.call_before(attention, aten.logical_not.default, (mask,))
    else:
        closed = edit.call_before(attention, aten.eq.Scalar, (mask, float("-inf")))
    blind = edit.call_before(attention, aten.all.dim, (closed, -1, True))
    if walk.dtype(mask) == torch.bool:
        opened = edit.call_before(attention, aten.logical_or.default, (mask, blind))
    else:
        opened = edit.call_before(attention, aten.masked_fill.Scalar, (mask, blind, 0.0))
    edit.set_argument(attention, "attn_mask", opened)
    edit.set_call(node, aten.masked_fill.Scalar, (attention, blind, 0.0))
