"""Where channels are read and where they are made, among the stored dimensions of a program.

A contraction reads the dimension of a weight that it sums over. Every other dimension of a parameter makes
channels or adds to them: the outputs of a weight, biases, norms, embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Node

from fxcompress.analysis.groups import Analysis
from fxcompress.axes.expression import leaves
from fxcompress.ops.consumption import Operand, consumed


def read_only(analysis: Analysis) -> frozenset[tuple[str, int]]:
    """The stored dimensions, as tensor and dimension, that every contraction of the tensor sums over."""
    read: set[tuple[str, int]] = set()
    made: set[tuple[str, int]] = set()
    for node in analysis.program.graph.nodes:
        for operand in consumed(node):
            for place, summed in _places(analysis, operand):
                (read if summed else made).add(place)
    return frozenset(read - made)


def _places(analysis: Analysis, operand: Operand) -> Iterator[tuple[tuple[str, int], bool]]:
    """The stored dimensions that an operand has, and whether they are summed over.

    Of a weight that is computed (transposed, normalised) those are summed over whose axes the contraction
    sums over and does not return: where both are the same axes, nothing tells which is which.
    """
    dims = analysis.space.of(operand.node)
    contracted = operand.dim % len(dims)
    if operand.node.op == "get_attr":
        yield from (((str(operand.node.target), dim), dim == contracted) for dim in range(len(dims)))
        return
    returned = {
        axis for dim, expression in enumerate(dims) if dim != contracted for axis in leaves(expression)
    }
    summed = set(leaves(dims[contracted])) - returned
    for stored in _stored_behind(operand.node):
        for dim, expression in enumerate(analysis.space.of(stored)):
            yield (str(stored.target), dim), not summed.isdisjoint(set(leaves(expression)))


def _stored_behind(node: Node) -> list[Node]:
    """The stored tensors that a value is computed from; none where an input takes part."""
    open_ends, seen, stored = [node], {node}, []
    while open_ends:
        found = open_ends.pop()
        if found.op == "placeholder":
            return []
        if found.op == "get_attr":
            stored.append(found)
        new = [source for source in found.all_input_nodes if source not in seen]
        seen.update(new)
        open_ends.extend(new)
    return stored
