"""Attention without the mask that hides nothing.

    scaled_dot_product_attention(q, k, v, expand(all true))   =>   scaled_dot_product_attention(q, k, v)

A stored mask whose elements are all true (or all zero, of a mask that is added), however it is expanded or
reshaped. An exported mask costs an addition over all scores and a guard against rows that see nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import set_argument
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, tensor
from fxcompress.passes.affine_sites import LAYOUTS, is_stored
from fxcompress.passes.contract import Outcome, outcome
from fxcompress.passes.shape_facts import operand

aten = torch.ops.aten

REARRANGED = LAYOUTS | {
    aten.expand.default,
    aten.slice.Tensor,
    aten.alias.default,
}
"""Operators whose results have no other elements than their input."""


@dataclass(frozen=True)
class DropMasks:
    """Remove attention masks that are known to hide nothing."""

    name: ClassVar[str] = "drop-masks"

    def run(self, program: Program) -> Outcome:
        """Return a program whose attentions have only masks that may hide something."""
        edited = program.copy()
        changed: list[str] = []
        for node in list(edited.graph.nodes):
            if node.target != aten.scaled_dot_product_attention.default:
                continue
            mask = argument(node, "attn_mask")
            if not isinstance(mask, Node) or not _hides_nothing(edited, mask):
                continue
            set_argument(node, "attn_mask", None)
            changed.append(f"{mask.name} hides nothing from {node.name}")
        return outcome(program, edited, changed)


def _hides_nothing(program: Program, mask: Node) -> bool:
    """Whether a mask comes from a stored tensor of one element's value, the one that hides nothing."""
    origin: Node | None = mask
    while origin is not None and origin.target in REARRANGED:
        origin = operand(origin)
    if origin is None or not is_stored(program, origin):
        return False
    stored = tensor(program, origin)
    if isinstance(stored, torch.nn.Parameter) or not stored.numel():
        return False
    return bool(stored.all()) if stored.dtype == torch.bool else not bool(stored.any())
