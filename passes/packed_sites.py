"""Where the output of one linear is taken apart: which calls, along which digit of its rows, into what.

The rows of a packed weight are counted with digits: after `reshape(.., 3, H, D)` the digit of size 3 says
which of query, key and value a row belongs to. A *site* is a linear whose result passes only through
operators that move dimensions, and is then taken apart along one digit. Nothing here changes a graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fxcompress.graph import walk
from fxcompress.ops.dimensions.layout import bounds
from fxcompress.passes.shape_facts import same_size

aten = torch.ops.aten


class NotPacked(Exception):
    """A linear that stays as it is; the message says why."""


@dataclass(frozen=True)
class Form:
    """How an operator takes its weight: argument positions, the rows' dimension in weight and result."""

    x: int
    weight: int
    bias: int
    rows: int
    channel: int


_LINEAR, _MATRIX, _CONVOLUTION = Form(0, 1, 2, 0, -1), Form(0, 1, 2, 1, -1), Form(0, 1, 2, 0, 1)
FORMS: dict[Any, Form] = {
    aten.linear.default: _LINEAR,
    aten.addmm.default: Form(1, 2, 0, 1, -1),
    aten.mm.default: _MATRIX,
    aten.matmul.default: _MATRIX,
    aten.conv1d.default: _CONVOLUTION,
    aten.conv2d.default: _CONVOLUTION,
    aten.conv3d.default: _CONVOLUTION,
}


@dataclass(frozen=True)
class Digit:
    """One digit of the row number: `row = (outer_place * size + place) * inner + inner_place`."""

    outer: int
    size: int
    inner: int

    def positions(self, start: int, stop: int) -> tuple[int, ...]:
        """The rows whose digit lies in a half-open range, ascending."""
        rows = torch.arange(self.outer * self.size * self.inner)
        return tuple(rows.reshape(self.outer, self.size, self.inner)[:, start:stop].flatten().tolist())


Digits: TypeAlias = dict[int, Digit]
"""Which dimensions of a value hold which digit of the rows."""


@dataclass(frozen=True)
class Taken:
    """A node that yields one range of a digit, found in `dim` of `source`; `dropped` where that goes."""

    node: Node
    source: Node
    dim: int
    start: int
    stop: int
    dropped: bool


@dataclass
class Site:
    """A linear whose result is taken apart along `digit`.

    Args:
        call: the linear.
        form: how it takes its weight.
        digit: the digit of its rows that says to which part a row belongs.
        chain: the operators between the linear and its parts, in graph order, with the digits they hold.
        taken: the nodes that read one range each.
    """

    call: Node
    form: Form
    digit: Digit
    chain: dict[Node, Digits] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)

    @property
    def weight(self) -> Node:
        found = operand(self.call, self.form.weight)
        assert found is not None
        return found

    @property
    def bias(self) -> Node | None:
        return operand(self.call, self.form.bias)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges of the digit, ascending."""
        return tuple(sorted({(item.start, item.stop) for item in self.taken}))


def operand(call: Node, place: int) -> Node | None:
    """The node at a position of a call; None for nothing or a constant."""
    found = call.args[place] if place < len(call.args) else None
    return found if isinstance(found, Node) else None


def is_linear(node: Node) -> bool:
    """Whether a node multiplies by a stored weight whose rows can be taken apart."""
    form = FORMS.get(node.target) if node.op == "call_function" else None
    weight = operand(node, form.weight) if form is not None else None
    if form is None or weight is None or weight.op != "get_attr" or node.kwargs:
        return False
    if form.rows == 1:
        return walk.value(weight).ndim == 2
    if form.channel == 1:
        return walk.argument(node, "groups") == 1 and walk.value(node).ndim == walk.value(weight).ndim
    return True


def site_of(call: Node) -> Site | None:
    """The site of a linear; None where its result is not taken apart.

    Raises:
        NotPacked: it is taken apart in a way that makes no parts.
    """
    site = Site(call, FORMS[call.target], Digit(1, 1, 1))
    rows = int(walk.value(site.weight).shape[site.form.rows])
    seen = _Walk()
    seen.follow(call, {site.form.channel % walk.value(call).ndim: Digit(1, rows, 1)})
    if not seen.taken:
        return None
    if seen.whole:
        raise NotPacked(f"{seen.whole[0].name} reads it whole")
    if len({digit for digit, _ in seen.taken}) > 1:
        raise NotPacked("it is taken apart in two ways")
    site.digit, site.taken = seen.taken[0][0], [item for _, item in seen.taken]
    site.chain = dict(sorted(seen.chain.items(), key=lambda item: item[0]))
    _check(site)
    return site


def _check(site: Site) -> None:
    place = 0
    for start, stop in site.ranges:
        if start < place:
            raise NotPacked("its parts overlap")
        if start > place:
            break
        place = stop
    if place != site.digit.size:
        raise NotPacked("nothing reads some of its rows")
    if len(site.ranges) == 1:
        raise NotPacked("it has a single part")
    bias = site.bias
    if bias is not None and walk.value(bias).ndim != 1:
        raise NotPacked("its bias is not one number a row")
    if bias is not None and bias.op != "get_attr" and site.digit.outer > 1:
        raise NotPacked("its bias is computed, and the rows of its parts alternate")


class _Walk:
    """Follows the rows of a weight through the operators that move them."""

    def __init__(self) -> None:
        self.chain: dict[Node, Digits] = {}
        self.taken: list[tuple[Digit, Taken]] = []
        self.whole: list[Node] = []

    def follow(self, node: Node, digits: Digits) -> None:
        """Visit every reader: a part, an operator that moves the rows, or one that reads them whole."""
        for user in walk.consumers(node):
            taken = _taken(user, node)
            if taken and all(item.dim in digits for item in taken):
                self.taken.extend((digits[item.dim], item) for item in taken)
            elif (moved := _moved(user, node, digits)) is not None:
                self.chain[user] = moved
                self.follow(user, moved)
            else:
                self.whole.append(user)


def _taken(user: Node, source: Node) -> list[Taken]:
    """The ranges of a dimension that an operator yields; nothing where it does something else."""
    value = walk.value(source)
    if user.target not in TAKERS or operand(user, 0) is not source:
        return []
    dim = walk.argument(user, "dim") % value.ndim
    size = walk.hint(value.shape[dim])
    if user.target is aten.select.int:
        index = walk.argument(user, "index")
        if not isinstance(index, int):
            return []
        return [Taken(user, source, dim, index % size, index % size + 1, True)]
    if user.target is aten.slice.Tensor:
        found = bounds(walk.argument(user, "start"), walk.argument(user, "end"), size)
        whole = found is None or found == (0, size) or walk.argument(user, "step") != 1
        return [] if whole or found is None else [Taken(user, source, dim, *found, False)]
    dropped = user.target is aten.unbind.int
    sizes = [1 if dropped else walk.hint(item.shape[dim]) for item in user.meta["val"]]
    starts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
    if not all(reader.target is operator.getitem for reader in user.users):
        return []
    return [
        Taken(reader, source, dim, starts[place], starts[place + 1], dropped)
        for reader in walk.consumers(user)
        if isinstance(place := reader.args[1], int)
    ]


TAKERS = frozenset(
    {
        aten.unbind.int,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
    }
)


def _moved(user: Node, source: Node, digits: Digits) -> Digits | None:
    """Where an operator puts the digits; None where it does more than move them."""
    rule = MOVES.get(user.target)
    if rule is None or operand(user, 0) is not source or user.kwargs:
        return None
    return rule(user, source, digits)


def _same(user: Node, source: Node, digits: Digits) -> Digits:  # noqa: ARG001 - as its siblings
    return digits


def _permuted(user: Node, source: Node, digits: Digits) -> Digits:
    order = [dim % walk.value(source).ndim for dim in walk.argument(user, "dims")]
    return {order.index(dim): digit for dim, digit in digits.items()}


def _transposed(user: Node, source: Node, digits: Digits) -> Digits:
    rank = walk.value(source).ndim
    first, second = walk.argument(user, "dim0") % rank, walk.argument(user, "dim1") % rank
    swapped = {first: second, second: first}
    return {swapped.get(dim, dim): digit for dim, digit in digits.items()}


def _unsqueezed(user: Node, source: Node, digits: Digits) -> Digits:  # noqa: ARG001 - as its siblings
    new = walk.argument(user, "dim") % walk.value(user).ndim
    return {dim + (dim >= new): digit for dim, digit in digits.items()}


def _squeezed(user: Node, source: Node, digits: Digits) -> Digits | None:
    gone = walk.argument(user, "dim") % walk.value(source).ndim
    if gone in digits or walk.value(user).ndim == walk.value(source).ndim:
        return None
    return {dim - (dim > gone): digit for dim, digit in digits.items()}


def _sliced(user: Node, source: Node, digits: Digits) -> Digits | None:
    """A slice of another dimension, or of everything: `x[:, :, 0]` begins with two of them."""
    dim = walk.argument(user, "dim") % walk.value(source).ndim
    whole = same_size(walk.value(user).shape[dim], walk.value(source).shape[dim])
    return digits if whole or dim not in digits else None


def _reshaped(user: Node, source: Node, digits: Digits) -> Digits | None:
    """Rows that are one dimension stay so or become several; the size arguments must be numbers."""
    if len(digits) != 1:
        return None
    (dim, digit), before, after = next(iter(digits.items())), walk.shape(source), walk.shape(user)
    first = next((n for n in range(len(after)) if same_size(prod(after[:n]), prod(before[:dim]))), None)
    if first is None or digit.outer * digit.inner != 1:
        return None
    sizes: list[int] = []
    for size in after[first:]:
        if not isinstance(size, int):
            return None
        sizes.append(size)
        if prod(sizes) >= digit.size:
            break
    if prod(sizes) != digit.size:
        return None
    made = [Digit(prod(sizes[:n]), size, prod(sizes[n + 1 :])) for n, size in enumerate(sizes)]
    return {first + n: item for n, item in enumerate(made) if item.size > 1}


Move: TypeAlias = Callable[[Node, Node, Digits], Digits | None]

RESHAPES = frozenset({aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unflatten.int})
MOVES: dict[Any, Move] = {
    **dict.fromkeys(RESHAPES, _reshaped),
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.unsqueeze.default: _unsqueezed,
    aten.squeeze.dim: _squeezed,
    aten.slice.Tensor: _sliced,
    aten.contiguous.default: _same,
    aten.clone.default: _same,
}
