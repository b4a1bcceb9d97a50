"""What a program costs without some of its residual blocks, priced without touching the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch.fx import Node

from fxcompress.analysis.cost import Cost, is_parameter, samples_of
from fxcompress.analysis.propagate import propagate
from fxcompress.analysis.residual import terms
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.cost import MACS


@dataclass(frozen=True)
class DepthPrice:
    """The cost of every node, and which of them are left once branches are not read any more."""

    program: Program
    macs: Mapping[Node, float]

    def without(self, removed: Mapping[str, int]) -> Cost:
        """The exact cost once the named additions are their identity operand.

        Args:
            removed: by name of the addition, the position of the operand that stays.
        """
        live = live_nodes(self.program, removed)
        stored = {node: walk.tensor(self.program, node) for node in live if node.op == "get_attr"}
        return Cost(
            sum(value for node, value in self.macs.items() if node in live),
            sum(tensor.numel() for node, tensor in stored.items() if is_parameter(self.program, node)),
            sum(tensor.numel() * tensor.element_size() for tensor in stored.values()),
        )


def depth_price(program: Program) -> DepthPrice:
    """Price every operator of a program as it is."""
    space = propagate(program)
    samples = samples_of(program, space)
    return DepthPrice(
        program,
        {
            node: sum(prod(dim.size for dim in term) for term in MACS[node.target](space, node)) / samples
            for node in program.graph.nodes
            if node in space.values and node.target in MACS
        },
    )


def live_nodes(program: Program, removed: Mapping[str, int]) -> set[Node]:
    """The nodes that the outputs still need once the named additions are their identity operand."""
    live: set[Node] = set()
    front = [walk.output_node(program)]
    while front:
        node = front.pop()
        if node in live:
            continue
        live.add(node)
        front.extend([terms(node)[removed[node.name]]] if node.name in removed else node.all_input_nodes)
    return {node for node in live if node.name not in removed}
