"""Run a program up to a node, look, change its tensors, and go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import fx

from fxcompress.graph import walk
from fxcompress.graph.execute import explained
from fxcompress.graph.program import Program

Values: TypeAlias = dict[fx.Node, Any]
"""What is known at some point of a run: the values that a later node reads."""


class Stepwise:
    """A program cut into steps, its operators in graph order.

    Stored tensors are read when an operator needs them: an edit between two steps counts from then on.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        self.place = {node: index for index, node in enumerate(self.nodes)}
        last: dict[fx.Node, int] = {}
        for index, node in enumerate(self.nodes):
            for source in node.all_input_nodes:
                last[source] = index
            last.setdefault(node, index)
        for source in walk.output_node(program).all_input_nodes:
            last[source] = len(self.nodes)
        self._spent: list[list[fx.Node]] = [[] for _ in range(len(self.nodes) + 1)]
        for node, index in last.items():
            self._spent[index].append(node)

    def begin(self, inputs: Sequence[torch.Tensor]) -> Values:
        """The values before the first operator."""
        return dict(zip(walk.placeholders(self.program), inputs, strict=True))

    def advance(self, values: Values, start: int, stop: int) -> None:
        """Run the operators from `start` up to, and without, `stop`; values read for the last time go."""
        with torch.no_grad():
            for node in self.nodes[start:stop]:
                values[node] = self.call(values, node)
                for spent in self._spent[self.place[node]]:
                    values.pop(spent, None)

    def call(self, values: Values, node: fx.Node) -> Any:
        """One operator on the values that are known.

        Raises:
            InputError: the operator refuses these values.
        """

        def look_up(source: fx.Node) -> Any:
            return walk.tensor(self.program, source) if source.op == "get_attr" else values[source]

        assert callable(node.target)
        with torch.no_grad(), explained(node):
            return node.target(*fx.map_arg(node.args, look_up), **fx.map_arg(node.kwargs, look_up))

    def outputs(self, values: Values) -> list[torch.Tensor]:
        """The flat outputs once every operator has run."""
        return [
            walk.tensor(self.program, node).detach() if node.op == "get_attr" else values[node]
            for node in walk.output_values(self.program)
        ]

    def peak_bytes(self) -> int:
        """The most that the values of one run take at any step, by the sizes of the example."""
        held = sum(_bytes(node) for node in walk.placeholders(self.program))
        peak = held
        for node in self.nodes:
            held += _bytes(node)
            peak = max(peak, held)
            held -= sum(_bytes(spent) for spent in self._spent[self.place[node]] if spent.op != "get_attr")
        return peak


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    several = value if isinstance(value, tuple | list) else [value]
    tensors = [item for item in several if isinstance(item, torch.Tensor)]
    total = 0
    for item in tensors:
        size = item.element_size()
        for extent in item.shape:
            size *= walk.hint(extent)
        total += size
    return total
