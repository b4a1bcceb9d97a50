"""Store large lookup tables as int8 with one scale per row; what is looked up is a float again at once.

    embedding(table, ids)  =>  embedding(table_int8, ids).float() * embedding(table_scale, ids)

`DequantizeLinear` on the whole table in front of the lookup would be shorter, and the runtime would convert
every row in every call (it keeps dequantizations out of constant folding). One scale per row costs one more
lookup and holds rows of any size: the error of an element is at most half of 1/127 of the largest of its row.

It runs last, when the projections that share a table have integers of their own: a table that something reads
in float stays, since a second copy would make the file larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxcompress.graph import edit, walk
from fxcompress.graph.program import Program
from fxcompress.numerics.affine import channel_scales, quantize_channels
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.plan.tables import SMALLEST, lookups, table_fault

aten = torch.ops.aten

LIMIT = 127


@dataclass(frozen=True)
class Tabled(Outcome):
    """An outcome with the names of the lookups that read integers."""

    lookups: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeTables:
    """Quantize the tables of lookups by row.

    Args:
        exclude: shell patterns of node names, parameter names or module paths that stay in float.
        smallest: elements that a table must have.
    """

    name: ClassVar[str] = "quantize-tables"
    exclude: tuple[str, ...] = ()
    smallest: int = SMALLEST

    def run(self, program: Program) -> Tabled:
        """Return the program with integers for tables."""
        copy = program.copy()
        declined: list[Decline] = []
        changed: list[str] = []
        told: list[str] = []
        for weight in [node for node in walk.tensor_nodes(copy) if lookups(node)]:
            readers = lookups(weight)
            others = [reader.name for reader in weight.users if reader not in readers]
            fault = table_fault(copy, weight, self.exclude, self.smallest)
            if fault is None and others:
                fault = f"it is also read by {', '.join(others)}, in float"
            if fault is not None:
                declined.append(Decline(str(weight.target), fault))
                continue
            _store(copy, weight)
            told += [node.name for node in readers]
            changed.append(f"{weight.target} stored as int8, one scale per row")
        made = outcome(program, copy, changed, declined)
        return Tabled(made.program, made.changed, made.declined, tuple(told))


def _store(program: Program, weight: fx.Node) -> None:
    """Store integers and scales of one table and let its lookups, which keep their names, read them."""
    name = str(weight.target)
    values = walk.tensor(program, weight).detach()
    scales = channel_scales(values, 0, LIMIT)
    whole = edit.add_tensor(program, f"{name}_int8", quantize_channels(values, scales, 0, LIMIT))
    scale = edit.add_tensor(program, f"{name}_scale", scales.unsqueeze(1))
    for node in lookups(weight):
        ids = walk.argument(node, "indices")
        found = edit.call_before(node, aten.embedding.default, (whole, ids), name=f"{node.name}_int8")
        real = edit.call_before(node, aten.to.dtype, (found, torch.float32), name=f"{node.name}_float")
        step = edit.call_before(node, aten.embedding.default, (scale, ids), name=f"{node.name}_scale")
        edit.set_call(node, aten.mul.Tensor, (real, step))
