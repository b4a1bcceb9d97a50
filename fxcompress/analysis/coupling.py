"""What couples two dimensions, as a graph to walk: dimensions of tensors, linked by the operators between.

The graph is drawn while the axes are propagated: an operator links the dimensions that share an axis right
after its own rule was applied. In the end all coupled dimensions share one, and nothing says why.
"""

from __future__ import annotations

from typing import TypeAlias

import networkx as nx
from torch.fx import Node

from fxcompress.analysis.propagate import propagate
from fxcompress.axes.expression import Axis, Dim, leaves
from fxcompress.graph import walk
from fxcompress.graph.origins import Origins
from fxcompress.graph.program import Program
from fxcompress.ops.dimensions.space import Space

INSIDE = -1
"""Stands for a dimension where an operator couples its operands, or its results, without having it itself."""

Place: TypeAlias = tuple[Node, int]
"""A dimension of a tensor, or the inside of an operator."""

End: TypeAlias = tuple[Place, int | None]
"""A place and the number of the axis that is meant, of those that make it up; None for all of them."""


def coupling(program: Program) -> nx.Graph[Place]:
    """Places as vertices, with their leaves at the end as `axes`; edges where an operator carries an axis."""
    graph: nx.Graph[Place] = nx.Graph()
    dims: dict[Place, list[Dim]] = {}

    def draw(space: Space, node: Node) -> None:
        value = space.values[node]
        if isinstance(value, list):
            results, inside = {}, _leaves([dim for several in value for dim in several])
        else:
            dims.update({(node, place): [dim] for place, dim in enumerate(value)})
            results, inside = {(node, place): _leaves([dim]) for place, dim in enumerate(value)}, set()
        operands = {
            place: _leaves(dims[place])
            for source in node.all_input_nodes
            for place in [(source, INSIDE), *((source, dim) for dim in range(_rank(space, source)))]
            if place in dims
        }
        shown, seen = set().union(*results.values()), set[Axis]()
        for axes in operands.values():
            inside |= (axes & seen) - shown
            seen |= axes
        if inside:
            dims[node, INSIDE] = list(inside)
            results[node, INSIDE] = inside
        graph.add_edges_from(
            (a, b) for a, axes in operands.items() for b, others in results.items() if axes & others
        )

    propagate(program, draw)
    for place, expressions in dims.items():
        graph.add_node(place, axes=tuple(dict.fromkeys(axis for dim in expressions for axis in leaves(dim))))
    return graph


def _leaves(dims: list[Dim]) -> set[Axis]:
    return {axis for dim in dims for axis in leaves(dim)}


def _rank(space: Space, node: Node) -> int:
    value = space.values.get(node)
    return len(value) if isinstance(value, tuple) else 0


def chain(graph: nx.Graph[Place], first: End, last: End) -> list[Place]:
    """The shortest way from one place to another along axes that both ends have; empty when there is none."""
    shared = _meant(graph, first) & _meant(graph, last)
    allowed = [place for place, axes in graph.nodes(data="axes") if not shared.isdisjoint(axes)]
    try:
        path: list[Place] = nx.shortest_path(graph.subgraph(allowed), first[0], last[0])
    except (nx.NetworkXNoPath, nx.NodeNotFound):
        return []
    return path


def _meant(graph: nx.Graph[Place], end: End) -> set[Axis]:
    place, number = end
    axes: tuple[Axis, ...] = graph.nodes[place]["axes"]
    return set(axes if number is None else axes[number : number + 1])


def describe(place: Place, origins: Origins) -> str:
    """A place for a reader: a stored dimension by the user's name, an operator with the user's line."""
    node, dim = place
    if node.op != "call_function":
        return origins.title(str(node.target), dim)
    where = walk.source(node)
    name = f"{node.name} ({node.target})" + ("" if dim == INSIDE else f"[{dim}]")
    return name if where is None else f"{name}  {where}"
