"""Sizes that vary at run time, checked on a second example.

Propagation sees the example's sizes, and there a batch of four may look like four heads. So every symbolic
size has a second value, the first times a prime of its own, and an expression must give the size of its
dimension for both. What fits the first example alone is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sympy import Expr, Integer
from torch.fx import Node

from fxcompress.axes.expression import Axis, Concat, Dim, find, leaves
from fxcompress.axes.positions import width
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.dimensions.space import Dims, Space
from fxcompress.ops.resize import RESIZES

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)


class Varying:
    """The second size of every axis whose size is symbolic, learned as the axes appear."""

    def __init__(self, program: Program) -> None:
        self.symbols: dict[Expr, Integer] = {}
        self.sizes: dict[Axis, int] = {}
        self._known: dict[Expr, int] = {}
        for node in walk.placeholders(program):
            for size in walk.value(node).shape if walk.is_tensor(node) else ():
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    prime = _PRIMES[len(self.symbols) % len(_PRIMES)]
                    self.symbols.setdefault(size.node.expr, Integer(walk.hint(size) * prime))

    def check(self, space: Space, node: Node, dims: Dims, value: torch.Tensor) -> None:
        """Freeze every dimension of a result that has its size in the first example only."""
        if not self.symbols:
            return
        for dim, size in zip(dims, value.shape, strict=True):
            found = find(dim)
            for axis in leaves(found):
                if axis in space.varying:
                    self.sizes.setdefault(axis, self._second(space.varying[axis]))
            if isinstance(size, torch.SymInt) and isinstance(found, Axis) and found.frozen:
                self.sizes.setdefault(found, self._second(size))
            if width(found, self.sizes) != self._second(size):
                space.freeze(node, found, "it agrees with a size that varies at run time in the example only")
            elif isinstance(size, torch.SymInt):
                for joined in _concats(found):
                    if any(axis in self.sizes for axis in leaves(joined)):
                        space.freeze(node, joined, "joined with positions whose number varies at run time")

    def _second(self, size: int | torch.SymInt) -> int:
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr
        if expression not in self._known:
            value = expression.xreplace(self.symbols)
            self._known[expression] = int(value) if value.is_Integer else -1
        return self._known[expression]


def _concats(dim: Dim) -> Iterator[Concat]:
    if isinstance(dim, Concat):
        yield dim
    elif not isinstance(dim, Axis):
        for factor in dim.factors:
            yield from _concats(find(factor))


def freeze_sizes_read_as_numbers(program: Program, space: Space) -> None:
    """Freeze dimensions whose size is computed with, as a divisor or a count; sizes of results may follow."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node not in space.values:
            if node.target is not torch.ops.aten.sym_size.int:
                for source in node.all_input_nodes:
                    if isinstance(space.values.get(source), tuple):
                        space.freeze(node, space.of(source), "read as a number")
            continue
        followed = _listed(node) if node.target in RESIZES else set()
        for scalar in node.all_input_nodes:
            if scalar not in space.values and scalar not in followed:
                for dim in _measured(space, scalar):
                    space.freeze(node, dim, "its size is used as a number")


def _listed(node: Node) -> set[Node]:
    """The nodes inside list arguments: sizes."""
    lists = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, list | tuple)]
    return {item for items in lists for item in items if isinstance(item, Node)}


def _measured(space: Space, scalar: Node) -> Iterator[Dim]:
    """The dimensions whose sizes a number is computed from."""
    if scalar.target is torch.ops.aten.sym_size.int:
        source, place = scalar.args
        assert isinstance(source, Node) and isinstance(place, int)
        yield space.of(source)[place]
        return
    for source in scalar.all_input_nodes:
        if source not in space.values:
            yield from _measured(space, source)
