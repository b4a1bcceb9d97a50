"""Dimension expressions: what the positions of one tensor dimension are made of.

A dimension is a leaf `Axis`, a `Concat` of expressions laid end to end, or a row-major `Product` of
expressions. A leaf is a union-find cell: binding it to another expression says that the two index the same
things, so a leaf that occurs in several tensors is a set of channels that can only be removed together.
`fxcompress.axes.algebra` holds the operations that bind leaves; this file holds the data and the pure
readings of it.

Sizes are the concrete sizes of the example; a dimension whose size is symbolic is always frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias


@dataclass(frozen=True)
class Reason:
    """Why an axis may not shrink, and the operator that says so.

    Args:
        text: the reason for a reader, such as `no rule for aten.foo.default`.
        operator: name of the graph node, if one is to blame.
        source: the user's line, as `file.py:12: code`.
    """

    text: str
    operator: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        return self.text if self.operator is None else f"{self.text} (at {self.operator})"


@dataclass(eq=False)
class Axis:
    """A leaf: `size` positions that no operator seen so far divides.

    `forward` is what the axis was bound to. `reasons` is non-empty once the axis is frozen. `statistics`
    names the operators that normalise over the axis, in order (removing positions changes their statistics,
    which the proof must know).
    """

    size: int
    name: str = ""
    forward: Dim | None = None
    reasons: list[Reason] = field(default_factory=list)
    statistics: dict[str, None] = field(default_factory=dict)

    @property
    def frozen(self) -> bool:
        """Whether no position may go: there is a reason, or there is only one."""
        return bool(self.reasons) or self.size < 2

    def __repr__(self) -> str:
        mark = "!" if self.frozen else ""
        return f"{self.name or 'axis'}:{self.size}{mark}"


@dataclass(frozen=True, eq=False)
class Concat:
    """Expressions laid end to end."""

    parts: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def __repr__(self) -> str:
        return f"Concat({', '.join(repr(find(part)) for part in self.parts)})"


@dataclass(frozen=True, eq=False)
class Product:
    """A row-major product, outermost factor first."""

    factors: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return prod(factor.size for factor in self.factors)

    def __repr__(self) -> str:
        return f"Product({', '.join(repr(find(factor)) for factor in self.factors)})"


Dim: TypeAlias = Axis | Concat | Product


def concat(*parts: Dim) -> Dim:
    """The parts end to end, flattened: nested concatenations merge and empty parts vanish."""
    flat: list[Dim] = []
    for part in map(find, parts):
        flat.extend(part.parts if isinstance(part, Concat) else [part] if part.size else [])
    if not flat:
        return Axis(0)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def product(*factors: Dim) -> Dim:
    """The row-major product, flattened: nested products merge and factors of one position vanish."""
    flat: list[Dim] = []
    for factor in map(find, factors):
        flat.extend(factor.factors if isinstance(factor, Product) else [factor] if factor.size != 1 else [])
    if not flat:
        return find(factors[0]) if factors else Axis(1)
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def find(dim: Dim) -> Dim:
    """The current meaning of an expression: forwarding followed (and compressed), nesting flattened."""
    if isinstance(dim, Axis):
        followed: list[Axis] = []
        end: Dim = dim
        while isinstance(end, Axis) and end.forward is not None:  # a loop: chains grow as long as the graph
            followed.append(end)
            end = end.forward
        end = end if isinstance(end, Axis) else find(end)
        for axis in followed:
            axis.forward = end
        return end
    if isinstance(dim, Concat):
        if all(_settled(part, Concat) for part in dim.parts):
            return dim
        return concat(*dim.parts)
    if all(_settled(factor, Product) for factor in dim.factors):
        return dim
    return product(*dim.factors)


def _settled(dim: Dim, outer: type[Concat] | type[Product]) -> bool:
    """Whether a child needs no rewriting: unbound, not nested in its own kind, and settled itself."""
    if isinstance(dim, Axis):
        return dim.forward is None
    return not isinstance(dim, outer) and find(dim) is dim


def leaves(dim: Dim) -> Iterator[Axis]:
    """Every leaf occurrence, in order of position; a leaf that occurs twice is given twice."""
    dim = find(dim)
    if isinstance(dim, Axis):
        yield dim
        return
    for child in dim.parts if isinstance(dim, Concat) else dim.factors:
        yield from leaves(child)


def frozen(dim: Dim) -> bool:
    """Whether no position of the expression can ever be removed."""
    return all(axis.frozen for axis in leaves(dim))
