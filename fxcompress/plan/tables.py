"""Which lookup tables can be stored as int8, one scale per row, and why the others stay in float.

The table is most of the file in many text models and has no arithmetic: a lookup reads a few rows, and only
those are made floats again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.quantization import Kind, role
from fxcompress.plan.eligibility import excluded, operand

SMALLEST = 1 << 18
"""Elements of a table, 1 MiB of floats, below which the file gains too little for three more operators."""

NARROWEST = 16
"""Elements of a row below which its scale takes more than a tenth of what its integers save."""


LATER = "its table becomes integers after all else, unless something reads it in float"


def lookups(weight: fx.Node) -> list[fx.Node]:
    """The operators that look rows of a stored tensor up."""
    return [
        reader
        for reader in weight.users
        if (row := role(reader)) and row.kind is Kind.LOOKUP and operand(reader, row.weight) is weight
    ]


def lookup_reason(program: Program, node: fx.Node, exclude: Sequence[str] = ()) -> str:
    """Say why a lookup is in float while nothing but activations and weights have been quantized."""
    row = role(node)
    weight = operand(node, row.weight if row else None)
    if weight is None or weight.op != "get_attr":
        return "its table is computed, not stored"
    return table_fault(program, weight, exclude) or LATER


def table_fault(
    program: Program, weight: fx.Node, exclude: Sequence[str] = (), smallest: int = SMALLEST
) -> str | None:
    """Say why a table stays in float, whatever else reads it; None where it can be stored as int8.

    Args:
        program: a float32 program.
        weight: the get_attr node of the table.
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
        smallest: elements that a table must have.
    """
    rows = walk.value(weight)
    if rows.dtype != torch.float32 or rows.dim() != 2:
        return "it is no matrix of float32"
    if rows.numel() < smallest or rows.shape[1] < NARROWEST:
        return f"its {rows.numel()} elements in rows of {rows.shape[1]} are too few to pay"
    if any(excluded(exclude, reader, weight) for reader in lookups(weight)):
        return "excluded by name"
    if not bool(walk.tensor(program, weight).isfinite().all()):
        return "it holds a NaN or an infinity"
    return None
