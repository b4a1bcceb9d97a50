"""Leave residual blocks out.

    add(x, f(x))  =>  x

What only `f(x)` needed goes with it, tensors included. An addition that is no residual block in the program
at hand stays, with the reason: a plan is made for one program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxcompress.analysis.residual import residual_blocks, terms
from fxcompress.graph.edit import replace_uses
from fxcompress.graph.program import Program
from fxcompress.graph.walk import output_values
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.plan.depth import DepthPlan


@dataclass(frozen=True)
class RemoveBlocks:
    """Rewire the additions a plan names to their identity."""

    plan: DepthPlan
    name: ClassVar[str] = "remove-blocks"

    def run(self, program: Program) -> Outcome:
        """Return the program without the plan's blocks."""
        edited = program.copy()
        found, none = residual_blocks(edited)
        blocks = {block.name: block for block in found}
        reasons = {item.name: (item.reason, item.source) for item in none}
        nodes = {node.name: node for node in edited.graph.nodes}
        changed: list[str] = []
        declined: list[Decline] = []
        for name, identity in self.plan.removed.items():
            block = blocks.get(name)
            if block is None or block.identity != identity:
                reason, source = reasons.get(name, ("the program has no such residual block", None))
                declined.append(Decline(name, reason, source))
                continue
            kept = terms(nodes[name])[identity]
            if nodes[name] in output_values(edited) and kept.op == "placeholder":
                reason = "with the blocks before it gone, an output of the model would be an input"
                declined.append(Decline(name, reason, block.source))
                continue
            where = block.module or "the model"
            changed.append(f"{name} is {kept.name}: {len(block.nodes)} operators of {where}")
            replace_uses(nodes[name], kept)
        return outcome(program, edited, changed, declined)
