"""The state of a forward walk: which dimension expressions every tensor of a graph has so far.

A *rule* reads the expressions of a node's inputs from the space, relates them with the verbs below (each of
which remembers the node as the one to blame), and returns the expressions of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch.fx import Node

from fxcompress.axes import algebra
from fxcompress.axes.expression import Axis, Dim, Reason, product
from fxcompress.graph import walk

Dims: TypeAlias = tuple[Dim, ...]
Value: TypeAlias = Dims | list[Dims]
"""What a node yields: the dimensions of a tensor, or a list of them for an operator with several outputs."""

Rule: TypeAlias = Callable[["Space", Node], Value]


class Space:
    """Dimension expressions by node, and the verbs that rules use.

    `varying` holds the symbolic sizes that rules gave to axes of their own.
    """

    def __init__(self) -> None:
        self.values: dict[Node, Value] = {}
        self.varying: dict[Axis, torch.SymInt] = {}

    def of(self, node: Node) -> Dims:
        """The dimensions of a tensor-valued node."""
        value = self.values[node]
        assert isinstance(value, tuple), node
        return value

    def reason(self, node: Node, text: str) -> Reason:
        return Reason(text, node.name, walk.source(node))

    def unify(self, node: Node, a: Dim, b: Dim) -> None:
        """Say that two dimensions index the same things because of `node`."""
        algebra.unify(a, b, self.reason(node, "structures that do not align"))

    def freeze(self, node: Node, dims: Dim | Sequence[Dim], text: str) -> None:
        """Say that nothing may be removed from these dimensions because of `node`."""
        for dim in dims if isinstance(dims, Sequence) else [dims]:
            algebra.freeze(dim, self.reason(node, text))

    def fixed(self, node: Node, sizes: Sequence[int | torch.SymInt], text: str) -> Dims:
        """New dimensions that may not shrink."""
        made = tuple(
            Axis(walk.hint(size), f"{node.name}[{place}]", reasons=[self.reason(node, text)])
            for place, size in enumerate(sizes)
        )
        self.varying.update(
            {axis: size for axis, size in zip(made, sizes, strict=True) if isinstance(size, torch.SymInt)}
        )
        return made

    def free(self, node: Node, size: int) -> Axis:
        """A new dimension of `node` that nothing restricts yet."""
        return Axis(size, node.name) if size > 1 else self.unit(node)

    def unit(self, node: Node) -> Axis:
        """A dimension of one position."""
        return Axis(1, node.name, reasons=[self.reason(node, "a single position")])

    def split(self, node: Node, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Consecutive pieces of a dimension; frozen ones if its structure has no such boundaries."""
        try:
            return algebra.split(dim, sizes)
        except algebra.Unalignable as fault:
            self.freeze(node, dim, f"split across its structure: {fault}")
            return list(self.fixed(node, sizes, f"split across its structure: {fault}"))

    def factor(self, node: Node, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """A dimension as a row-major product; frozen factors if its structure does not allow it."""
        try:
            return algebra.factor(dim, sizes, self.reason(node, "reshaped"))
        except algebra.Unalignable as fault:
            self.freeze(node, dim, f"reshaped across its structure: {fault}")
            return list(self.fixed(node, sizes, f"reshaped across its structure: {fault}"))

    def broadcast(self, node: Node, operands: Sequence[Dims]) -> Dims:
        """Align from the right and unify what is not broadcast (NumPy's rule); returns the result's
        dimensions.
        """
        rank = max((len(dims) for dims in operands), default=0)
        result: list[Dim] = []
        for place in range(rank, 0, -1):
            column = [dims[-place] for dims in operands if len(dims) >= place]
            wide = [dim for dim in column if dim.size != 1] or column[:1]
            for other in wide[1:]:
                self.unify(node, wide[0], other)
            result.append(wide[0])
        return tuple(result)

    def reshape(self, node: Node, dims: Dims, sizes: Sequence[int]) -> Dims:
        """Row-major reshape: cut both shapes into minimal segments of equal product and factor each."""
        if 0 in sizes:
            self.freeze(node, dims, "an empty tensor")
            return self.fixed(node, sizes, "an empty tensor")
        source, wanted = [dim for dim in dims if dim.size != 1], list(sizes)
        result: list[Dim] = []
        while wanted:
            if wanted[0] == 1:
                result.append(self.unit(node))
                wanted.pop(0)
                continue
            result.extend(self._segment(node, source, wanted))
        return tuple(result)

    def _segment(self, node: Node, source: list[Dim], wanted: list[int]) -> list[Dim]:
        """Take from both lists until their products agree; return the new dimensions of that stretch."""
        taken, sizes = [source.pop(0)], [wanted.pop(0)]
        have, want = taken[0].size, sizes[0]
        while have != want:
            if have < want:
                taken.append(source.pop(0))
                have *= taken[-1].size
            else:
                sizes.append(wanted.pop(0))
                want *= sizes[-1]
        if len(taken) == len(sizes) == 1:
            return taken
        return self.factor(node, product(*taken), sizes)
