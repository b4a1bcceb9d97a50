"""An average pooling whose one window holds the whole image becomes the pooling that says so.

    avg_pool2d(x[N, C, H, W], kernel >= (H, W), ceil_mode)   =>   adaptive_avg_pool2d(x, [1, 1])

(EfficientNet of `transformers` ends in a pool of 1280 x 1280 over 7 x 7.) ONNX Runtime's kernels for such
windows disagree with torch by up to 100 of 255 steps in int8; global pooling is exact, and as fast as a pool
can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxcompress.graph.edit import set_call
from fxcompress.graph.program import Program
from fxcompress.graph.walk import source
from fxcompress.ops.pooling import not_over_everything
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.shape_facts import operand

aten = torch.ops.aten


@dataclass(frozen=True)
class PoolGlobally:
    """Write average pools over everything as global ones."""

    name: ClassVar[str] = "pool-globally"

    def run(self, program: Program) -> Outcome:
        """Return a program in which pools over the whole image are global."""
        edited = program.copy()
        changed: list[str] = []
        declined: list[Decline] = []
        for node in list(edited.graph.nodes):
            if node.op != "call_function" or node.target is not aten.avg_pool2d.default:
                continue
            reason = not_over_everything(node)
            if reason is not None:
                declined.append(Decline(node.name, reason, source(node)))
                continue
            set_call(node, aten.adaptive_avg_pool2d.default, (operand(node), [1, 1]))
            changed.append(f"{node.name} is global")
        return outcome(program, edited, changed, declined)
