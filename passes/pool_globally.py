"""An average pooling whose one window holds the whole image becomes the pooling that says so.

    avg_pool2d(x[N, C, H, W], kernel >= (H, W), ceil_mode)   =>   adaptive_avg_pool2d(x, [1, 1])

torch divides by the part of the window that lies on the image, whatever the kernel's size. (EfficientNet of
`transformers` ends in a pool of 1280 x 1280 over 7 x 7.) ONNX Runtime's kernels for such windows disagree
with torch by up to 100 of 255 steps in int8; global pooling is exact, and as fast as a pool can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.graph.edit import set_call
from fxcompress.graph.program import Program
from fxcompress.graph.walk import argument, source
from fxcompress.passes.contract import Decline, Outcome, outcome
from fxcompress.passes.shape_facts import operand, value_of

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
            reason = _obstacle(node)
            if reason is not None:
                declined.append(Decline(node.name, reason, source(node)))
                continue
            set_call(node, aten.adaptive_avg_pool2d.default, (operand(node), [1, 1]))
            changed.append(f"{node.name} is global")
        return outcome(program, edited, changed, declined)


def _obstacle(node: Node) -> str | None:
    """Why a pool is none over everything, or None."""
    given = operand(node)
    before, after = (value_of(given) if given is not None else None), value_of(node)
    if before is None or after is None:
        return "pools something other than a tensor"
    image = before.shape[-2:]
    if any(isinstance(size, torch.SymInt) for size in image):
        return "pools an image whose size varies"
    kernel = list(argument(node, "kernel_size"))
    kernel = kernel * 2 if len(kernel) == 1 else kernel
    if any(size < whole for size, whole in zip(kernel, image)) or list(after.shape[-2:]) != [1, 1]:
        return "has more than one window"
    if any(argument(node, "padding", [0])):
        return "pads"
    if argument(node, "divisor_override") is not None:
        return "divides by a number of its own"
    return None
