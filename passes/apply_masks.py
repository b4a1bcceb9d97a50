"""Zero single weights.

    weight  =>  weight * mask

Shapes, operators and kernels stay as they are: see `plan.sparsity.STATEMENT` for what that means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxcompress.errors import InputError
from fxcompress.graph.edit import set_tensor
from fxcompress.graph.program import Program
from fxcompress.graph.walk import tensor, tensor_nodes
from fxcompress.passes.contract import Decline, Outcome
from fxcompress.plan.sparsity import STATEMENT, SparsityPlan


@dataclass(frozen=True)
class ApplyMasks:
    """Set the weights that a plan's masks name to zero."""

    plan: SparsityPlan
    name: ClassVar[str] = "apply-masks"

    def run(self, program: Program) -> Outcome:
        """Return the program with zeroed weights; raises InputError where a mask fits no tensor of it."""
        edited = program.copy()
        stored = {str(node.target) for node in tensor_nodes(program)}
        changed: list[str] = []
        for name, mask in self.plan.masks.items():
            if name not in stored or tensor(program, name).shape != mask.shape:
                found = list(tensor(program, name).shape) if name in stored else "none of that name"
                raise InputError(
                    f"the mask of {name} has shape {list(mask.shape)}; the program has {found}",
                    hint="apply masks to the program that they were made for",
                )
            weight = tensor(program, name).detach()
            thin = torch.where(mask.to(weight.device), weight, torch.zeros_like(weight))
            if not torch.equal(thin, weight):
                before, after = int(weight.count_nonzero()), int(thin.count_nonzero())
                set_tensor(edited, name, thin)
                changed.append(f"{name}: {before} -> {after} of {weight.numel()} weights are not zero")
        declined = tuple(Decline(name, reason) for name, reason in self.plan.declined.items())
        if not changed:
            return Outcome(program, (), declined)
        if STATEMENT not in edited.notes:
            edited.notes.append(STATEMENT)
        return Outcome(edited, tuple(changed), declined)
