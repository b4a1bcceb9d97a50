"""Run a program node by node; subclasses look at every value or replace it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fxcompress.errors import InputError, first_line
from fxcompress.graph import walk
from fxcompress.graph.signature import Holder


@contextmanager
def explained(node: fx.Node) -> Iterator[None]:
    """Whatever torch says of the values that an operator is called with becomes a typed error."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{node.target} does not run on these inputs: {first_line(error)}",
            node=node.format_node(),
            source=walk.source(node),
            hint="look for inputs the model cannot take: ids beyond a table, sizes it has no room for",
        ) from error


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
        """Run one node and pass its value through the hook.

        Raises:
            InputError: the operator refuses these values, such as a token id that its table does not have.
        """
        with explained(n):
            value = super().run_node(n)
        return self.after(n, value)

    def run_flat(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """The flat outputs for flat inputs, in the order of `signature.outputs`.

        Where no gradients are recorded, an output that is a parameter is handed out without its own.
        """
        outputs = list(self.run(*inputs, enable_io_processing=False))
        if torch.is_grad_enabled():
            return outputs
        return [value.detach() if isinstance(value, torch.Tensor) else value for value in outputs]


def run_flat(program: Holder, inputs: Sequence[torch.Tensor]) -> list[Any]:
    """The program's flat outputs for flat inputs, without gradients."""
    with torch.no_grad():
        return Executor(program).run_flat(inputs)
