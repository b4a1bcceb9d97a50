"""Attention under a stored mask some of whose rows see nothing.

    y = attention(q, k, v, mask)   =>   y = masked_fill(attention(q, k, v, opened mask), blind rows, 0)

In torch a row that sees nothing is zero. Written as it stands, the mask is folded into the file before our
rewrites see it (`mask_forms`): as the lowest number, which gives the mean of all values, or as minus
infinity, which gives NaN. What is computed for the open rows is not used.
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
    blind = {node: rows for node in program.graph.nodes if (rows := _blind(program, node)) is not None}
    if not blind:
        return program
    copy = program.copy()
    copied = {node.name: node for node in copy.graph.nodes}
    for node, rows in blind.items():
        _open(copy, copied[node.name], rows)
    edit.tidy(copy)
    edit.reinfer(copy)
    return copy


def _blind(program: Program, node: fx.Node) -> Tensor | None:
    """The rows of an attention's stored mask that see nothing, `[.., L, 1]`; None where there are none."""
    mask = walk.argument(node, "attn_mask") if node.target is ATTENTION else None
    if not isinstance(mask, fx.Node) or mask.op != "get_attr":
        return None
    stored = walk.tensor(program, mask).detach()
    closed = stored.logical_not() if stored.dtype == torch.bool else stored == float("-inf")
    rows = closed.all(-1, keepdim=True)
    return rows if bool(rows.any()) else None


def _open(program: Program, node: fx.Node, rows: Tensor) -> None:
    mask = walk.argument(node, "attn_mask")
    assert isinstance(mask, fx.Node)
    stored = walk.tensor(program, mask).detach()
    open_mask = stored.masked_fill(rows, True if stored.dtype == torch.bool else 0.0)
    attention = edit.call_before(node, ATTENTION, node.args, dict(node.kwargs), name=f"{node.name}_open")
    edit.set_argument(attention, "attn_mask", edit.add_tensor(program, f"{mask.target}_open", open_mask))
    blind = edit.add_tensor(program, f"{mask.target}_blind", rows)
    edit.set_call(node, aten.masked_fill.Scalar, (attention, blind, 0.0))
