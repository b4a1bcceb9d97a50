"""Channel groups: the sets of positions, across all parameters, that can only be removed together.

A leaf axis that is not frozen and occurs in a stored tensor is a group. What is frozen is listed with the
reason and the line of the user's model that caused it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import torch
from torch.fx import Node

from fxcompress.analysis.cost import Price, price
from fxcompress.analysis.coupling import End, Place, chain, coupling, describe
from fxcompress.analysis.propagate import propagate
from fxcompress.axes.expression import Axis, Dim, Product, find, leaves
from fxcompress.axes.positions import multiplicities
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.graph.module import tied
from fxcompress.graph.program import Program
from fxcompress.ops.dimensions.space import Space

_NUMBERED = re.compile(r"(.*\]):(\d+)")
"""The name of one axis of several that make up a dimension."""


@dataclass(frozen=True)
class Member:
    """One dimension of one stored tensor in which a group occurs.

    Args:
        tensor: the stored name.
        dim: the dimension.
        expression: what it is made of.
        stated: the dimension in the user's names and coordinates, where a rewrite named the tensor anew.
    """

    tensor: str
    dim: int
    expression: Dim
    stated: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What the dimension goes by: the user's name, that of the whole dimension, and the stored one."""
        stated = str(self)
        whole = f"{stated.partition('[')[0]}[{self.dim}]"
        return tuple(dict.fromkeys((stated, whole, f"{self.tensor}[{self.dim}]")))

    def __str__(self) -> str:
        return self.stated or f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True)
class Group:
    """Coupled channels.

    Args:
        name: the first member in the user's names and coordinates, such as `layer1.0.conv1.weight[0]` or, of
            a packed weight, `qkv.weight[0][128:192]`; where several axes make up that dimension, the axis is
            numbered in order of position: `qkv.weight[0]:1`.
        axis: the leaf; its indices are the group's.
        members: every stored dimension in which the axis occurs.
        positions: the smallest number of positions of a parameter that go with one index (64 for a head of
        width 64).
    """

    name: str
    axis: Axis
    members: tuple[Member, ...]
    positions: int

    @property
    def size(self) -> int:
        return self.axis.size

    def goes_by(self, name: str) -> bool:
        """Whether this is the name of the group or of a stored dimension in it, such as `conv1.weight[0]`."""
        return name == self.name or any(
            name in (f"{known}{axis_number(member, self.axis)}", known)
            for member in self.members
            for known in member.names
        )

    @property
    def statistics(self) -> tuple[str, ...]:
        """The operators that normalise over this axis."""
        return tuple(self.axis.statistics)


@dataclass(frozen=True)
class Frozen:
    """An axis of a stored tensor that may not shrink, and why; `tensor` is the stored name."""

    axis: str
    tensor: str
    size: int
    reason: str
    operator: str | None
    source: str | None


@dataclass(frozen=True)
class Analysis:
    """What dependency analysis found: groups, obstacles, exact prices."""

    program: Program
    space: Space
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    price: Price

    def group(self, name: str) -> Group:
        """The group of this name, else the first that has a stored dimension of this name."""
        for group in self.groups:
            if group.name == name:
                return group
        for group in self.groups:
            if group.goes_by(name):
                return group
        raise InputError(
            f"no prunable group has a member called {name!r}",
            hint="names look like 'layer1.conv1.weight[0]'; `fxcompress inspect` lists them",
        )

    def why(self, a: str, b: str) -> list[str]:
        """The operators that couple two stored dimensions, from `a` to `b`; empty when nothing does.

        Args:
            a, b: stored dimensions, such as `conv1.weight[0]`, or one axis of several, `qkv.weight[0]:1`. The
                dimension of a packed weight is all of its parts; those that couple by the shortest way count.
        """
        ways = (chain(self.coupling, first, last) for first in self._ends(a) for last in self._ends(b))
        shortest = min((way for way in ways if way), key=len, default=[])
        return [describe(place, self.program.origins) for place in shortest]

    def _ends(self, name: str) -> list[End]:
        """The stored dimensions of this name, each with the axis that it means."""
        numbered = _NUMBERED.fullmatch(name)
        places = self._places.get(name if numbered is None else numbered[1], [])
        number = None if numbered is None else int(numbered[2])
        if places:
            return [(place, number) for place in places]
        close = difflib.get_close_matches(name, self._places, 3, 0.5)
        raise InputError(
            f"no stored tensor has a dimension called {name!r}",
            hint="write it as 'layer1.conv1.weight[0]': the parameter's name and the dimension in brackets"
            + (f"; did you mean {' or '.join(map(repr, close))}?" if close else ""),
        )

    @cached_property
    def _places(self) -> dict[str, list[Place]]:
        """Every dimension of every stored tensor under each of its names."""
        names = {found[0]: found for found in tied(self.program.module).values()}
        places: dict[str, list[Place]] = {}
        for node in walk.tensor_nodes(self.program):
            for dim, expression in enumerate(self.space.of(node)):
                aliases = names.get(str(node.target), [str(node.target)])
                known = [f"{alias}[{dim}]" for alias in aliases]
                known += member_of(self.program, node, dim, expression).names
                for name in dict.fromkeys(known):
                    places.setdefault(name, []).append((node, dim))
        return places

    @cached_property
    def coupling(self) -> nx.Graph[Place]:
        """Which dimensions of which tensors the operators couple; see `analysis.coupling`."""
        return coupling(self.program)


def analyse(program: Program) -> Analysis:
    """Find the groups of a program, what is frozen, and the price of every width."""
    space = propagate(program)
    members: dict[Axis, list[tuple[Member, int]]] = {}
    obstacles: list[Frozen] = []
    for node in program.graph.nodes:
        if node.op != "get_attr" or not node.meta["val"].dtype.is_floating_point:
            continue
        for place, dim in enumerate(space.of(node)):
            member = member_of(program, node, place, find(dim))
            for axis, count in multiplicities(dim).items():
                if not axis.frozen:
                    members.setdefault(axis, []).append((member, count))
                elif axis.size > 1 and isinstance(walk.tensor(program, node), torch.nn.Parameter):
                    obstacles.append(_obstacle(member, axis))
    trainable = frozenset(str(node.target) for node in walk.parameter_nodes(program))
    groups = tuple(_group(axis, found, trainable) for axis, found in members.items())
    return Analysis(program, space, groups, tuple(_distinct(obstacles)), price(program, space))


def _group(axis: Axis, found: list[tuple[Member, int]], trainable: frozenset[str]) -> Group:
    """A group of members, each with the number of its positions that go with one index."""
    weights = [count for member, count in found if member.tensor in trainable]
    members = tuple(member for member, _ in found)
    return Group(axis_name(members[0], axis), axis, members, min(weights or [count for _, count in found]))


def axis_name(member: Member, axis: Axis) -> str:
    """`conv1.weight[0]`, or `qkv.weight[0]:1` where several axes make up the dimension."""
    return f"{member}{axis_number(member, axis)}"


def axis_number(member: Member, axis: Axis) -> str:
    """`:1` where several axes make up the dimension, else nothing."""
    parts = list(dict.fromkeys(leaves(member.expression)))
    return "" if len(parts) == 1 else f":{parts.index(axis)}"


def member_of(program: Program, node: Node, place: int, dim: Dim) -> Member:
    """A dimension of a stored tensor, with the name that the user knows it by."""
    name = str(node.target)
    return Member(name, place, dim, program.origins.title(name, place))


def _obstacle(member: Member, axis: Axis) -> Frozen:
    reason = axis.reasons[0]
    return Frozen(str(member), member.tensor, axis.size, reason.text, reason.operator, reason.source)


def _distinct(obstacles: list[Frozen]) -> Iterator[Frozen]:
    """One line per stored dimension; kernels say nothing that a reader does not know."""
    seen: set[tuple[str, str]] = set()
    for item in obstacles:
        if (item.axis, item.tensor) not in seen and item.reason != "a kernel":
            seen.add((item.axis, item.tensor))
            yield item


def rivals(analysis: Analysis) -> list[tuple[tuple[Group, ...], ...]]:
    """Products with several prunable factors, such as heads and head width, each factor given as its groups.

    Pruning more than one factor of a product multiplies their effect; a plan chooses one, or budgets both
    knowingly.
    """
    by_axis = {group.axis: group for group in analysis.groups}
    found: dict[tuple[tuple[str, ...], ...], tuple[tuple[Group, ...], ...]] = {}
    for group in analysis.groups:
        for member in group.members:
            for factors in _products(member.expression):
                free = tuple(
                    tuple(by_axis[axis] for axis in dict.fromkeys(factor) if axis in by_axis)
                    for factor in factors
                )
                free = tuple(factor for factor in free if factor)
                if len(free) > 1:
                    found[tuple(tuple(item.name for item in factor) for factor in free)] = free
    return list(found.values())


def _products(dim: Dim) -> Iterator[list[list[Axis]]]:
    """Each product in an expression, as the leaves of each of its factors."""
    dim = find(dim)
    if isinstance(dim, Axis):
        return
    children = dim.factors if isinstance(dim, Product) else dim.parts
    if isinstance(dim, Product):
        yield [list(leaves(factor)) for factor in children]
    for child in children:
        yield from _products(child)
