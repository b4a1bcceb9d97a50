"""Run a program node by node; subclasses look at every value or replace it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxcompress.graph.signature import Holder


class Executor(fx.Interpreter):
    """An interpreter of a program's graph on flat inputs, with one hook.

    Override `after` to observe or replace values. Values are freed after their last use.
    """

    def __init__(self, program: Holder) -> None:
        super().__init__(program.module)
        self.extra_traceback = False

    def after(self, node: fx.Node, value: Any) -> Any:  # noqa: ARG002
        """Called with every value as it is made; what it returns is what the graph continues with."""
        return value

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and pass its value through the hook."""
        return self.after(n, super().run_node(n))

    def run_flat(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """The flat outputs for flat inputs, in the order of `signature.outputs`."""
        return list(self.run(*inputs, enable_io_processing=False))


def run_flat(program: Holder, inputs: Sequence[torch.Tensor]) -> list[Any]:
    """The program's flat outputs for flat inputs, without gradients."""
    with torch.no_grad():
        return Executor(program).run_flat(inputs)
