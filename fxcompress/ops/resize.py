"""How an operator's constants follow when dimensions shrink: sizes, groups, bounds, normalised shapes.

One row per operator that carries such a constant; an operator without a row has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from fxcompress.axes import algebra
from fxcompress.axes.expression import Axis, Dim
from fxcompress.axes.positions import width
from fxcompress.graph.walk import hint
from fxcompress.ops.arguments import arguments
from fxcompress.ops.dimensions.layout import bounds, rolled, split_place
from fxcompress.ops.dimensions.normalisation import reduced_places
from fxcompress.ops.dimensions.space import Space
from fxcompress.ops.families import CONVOLUTIONS, TRANSPOSED

aten = torch.ops.aten


@dataclass(frozen=True)
class Scaled:
    """A symbolic size that counted removed positions: `value * new // old`."""

    value: Node
    new: int
    old: float


@dataclass(frozen=True)
class Change:
    """What becomes of a node: arguments by schema name, and another overload if the old one cannot say it."""

    arguments: Mapping[str, Any]
    target: Any = None


@dataclass(frozen=True)
class Resizing:
    """A space in which some leaves get new widths."""

    space: Space
    widths: Mapping[Axis, int]
    _scalars: dict[Node, float] = field(default_factory=dict)

    def after(self, dim: Dim) -> int:
        """The new size of a dimension."""
        return width(dim, self.widths)

    def touches(self, node: Node) -> bool:
        """Whether any dimension of the node's inputs or outputs shrinks."""
        return any(
            self.after(dim) != dim.size
            for item in (node, *node.all_input_nodes)
            for dims in self._every(item)
            for dim in dims
        )

    def _every(self, node: Node) -> list[tuple[Dim, ...]]:
        value = self.space.values.get(node, ())
        return value if isinstance(value, list) else [value]

    def scalar(self, node: Node) -> float:
        """The value, in the example, that a symbolic size has after the resizing if its node is left as it
        is.
        """
        if node not in self._scalars:
            self._scalars[node] = self._scalar(node)
        return self._scalars[node]

    def _scalar(self, node: Node) -> float:
        if node.target is aten.sym_size.int:
            source, place = node.args
            assert isinstance(source, Node) and isinstance(place, int)
            return self.after(self.space.of(source)[place])
        if not callable(node.target) or any(source in self.space.values for source in node.all_input_nodes):
            return _before(node)  # what else is read off a tensor stays, see freeze_sizes_read_as_numbers
        args, kwargs = map_arg((node.args, node.kwargs), self.scalar)
        result: float = node.target(*args, **kwargs)
        return result

    def size(self, argument: Any, dim: Dim) -> Any:
        """The argument that gives `dim` its new size: unchanged, a number, or a rescaled symbolic size."""
        wanted = self.after(dim)
        if isinstance(argument, Node):
            actual = self.scalar(argument)
            return argument if actual == wanted else Scaled(argument, wanted, actual)
        return argument if argument == -1 or wanted == dim.size else wanted

    def sizes(self, wanted: Sequence[Any], dims: Sequence[Dim]) -> list[Any]:
        return [self.size(argument, dim) for argument, dim in zip(wanted, dims, strict=True)]


def _before(node: Node) -> float:
    value = node.meta["val"]
    return hint(value) if isinstance(value, int | torch.SymInt) else float(value)


Row: TypeAlias = Callable[[Resizing, Node], Change | None]


def _view(resizing: Resizing, node: Node) -> Change | None:
    return Change({"size": resizing.sizes(arguments(node)["size"], resizing.space.of(node))})


def _reshape(resizing: Resizing, node: Node) -> Change | None:
    return Change({"shape": resizing.sizes(arguments(node)["shape"], resizing.space.of(node))})


def _unflatten(resizing: Resizing, node: Node) -> Change | None:
    bound, dims = arguments(node), resizing.space.of(node)
    count = len(bound["sizes"])
    place = bound["dim"] % (len(dims) - count + 1)
    return Change({"sizes": resizing.sizes(bound["sizes"], dims[place : place + count])})


def _groups(resizing: Resizing, node: Node) -> Change | None:
    """The number of groups follows its factor of the input channels, which may be frozen for having none."""
    bound = arguments(node)
    x, weight = resizing.space.of(bound["input"]), resizing.space.of(bound["weight"])
    channels = x[len(x) - len(weight) + 1]
    if bound["groups"] == 1 or resizing.after(channels) == channels.size:
        return None
    outer = algebra.factor(channels, [bound["groups"], channels.size // bound["groups"]])[0]
    return Change({"groups": resizing.after(outer)})


def _group_norm(resizing: Resizing, node: Node) -> Change | None:
    bound = arguments(node)
    channels = resizing.space.of(bound["input"])[1]
    if resizing.after(channels) == channels.size:
        return None
    name = "num_groups" if "num_groups" in bound else "group"
    outer = algebra.factor(channels, [bound[name], channels.size // bound[name]])[0]
    change: dict[str, Any] = {name: resizing.after(outer)}
    if "C" in bound:
        change["C"] = resizing.size(bound["C"], channels)
    return Change(change)


def _shuffled_groups(resizing: Resizing, node: Node) -> Change | None:
    bound = arguments(node)
    channels = resizing.space.of(bound["self"])[1]
    if resizing.after(channels) == channels.size:
        return None
    outer = algebra.factor(channels, [bound["groups"], channels.size // bound["groups"]])[0]
    return Change({"groups": resizing.after(outer)})


def _normalised_shape(resizing: Resizing, node: Node) -> Change | None:
    bound = arguments(node)
    dims = resizing.space.of(bound["input"])[-len(bound["normalized_shape"]) :]
    return Change({"normalized_shape": resizing.sizes(bound["normalized_shape"], dims)})


def _attention(resizing: Resizing, node: Node) -> Change | None:
    """The scale stays that of the original head width: 1 / sqrt(E)."""
    bound = arguments(node)
    head = resizing.space.of(bound["query"])[-1]
    if bound["scale"] is not None or resizing.after(head) == head.size:
        return None
    return Change({"scale": 1.0 / math.sqrt(head.size)})


def _split(resizing: Resizing, node: Node) -> Change | None:
    """Equal pieces may become unequal: every form becomes `split_with_sizes`."""
    several = resizing.space.values[node]
    assert isinstance(several, list)
    place = split_place(node, len(several[0]))
    sizes = [resizing.after(dims[place]) for dims in several]
    if sizes == [dims[place].size for dims in several]:
        return None
    return Change(
        {"self": node.all_input_nodes[0], "split_sizes": sizes, "dim": place},
        aten.split_with_sizes.default,
    )


def _squeeze(resizing: Resizing, node: Node) -> Change | None:
    """Only what had one position before loses it: dimensions that shrink to one are named around."""
    bound = arguments(node)
    dims = resizing.space.of(bound["self"])
    named = [] if bound.get("dim") == [] else sorted(reduced_places(bound.get("dim"), len(dims)))
    single = [place for place in named if dims[place].size == 1]
    if single == [place for place in named if resizing.after(dims[place]) == 1]:
        return None
    return Change({"self": bound["self"], "dim": single}, aten.squeeze.dims)


def _pieces(dim: Dim, start: int, length: int) -> list[Dim]:
    return algebra.split(dim, [start, length, dim.size - start - length])


def _slice(resizing: Resizing, node: Node) -> Change | None:
    bound = arguments(node)
    dim = resizing.space.of(bound["self"])[bound["dim"]]
    found = bounds(bound["start"], bound["end"], dim.size)
    if found is None or resizing.after(dim) == dim.size:
        return None
    if bound["step"] != 1:
        return Change({"end": resizing.after(dim)})
    before, inside, _ = _pieces(dim, found[0], found[1] - found[0])
    start = resizing.after(before)
    return Change({"start": start, "end": start + resizing.after(inside)})


def _roll(resizing: Resizing, node: Node) -> Change | None:
    """A shift counts the positions of the piece that comes first."""
    bound = arguments(node)
    dims, shifts = resizing.space.of(bound["self"]), list(bound["shifts"])
    for pair, place in enumerate(bound["dims"]):
        if resizing.after(dims[place]) != dims[place].size:
            pieces = algebra.split(dims[place], rolled(dims[place].size, shifts[pair]))
            shifts[pair] = resizing.after(pieces[1])
    return None if shifts == list(bound["shifts"]) else Change({"shifts": shifts})


def _narrow(resizing: Resizing, node: Node) -> Change | None:
    bound = arguments(node)
    dim = resizing.space.of(bound["self"])[bound["dim"]]
    if resizing.after(dim) == dim.size:
        return None
    before, inside, _ = _pieces(dim, bound["start"] % dim.size, bound["length"])
    return Change({"start": resizing.after(before), "length": resizing.after(inside)})


def _repeat_interleave(resizing: Resizing, node: Node) -> Change | None:
    """The size of the result may be given beforehand, to save counting it."""
    bound = arguments(node)
    if bound.get("output_size") is None or bound.get("dim") is None:
        return None
    return Change({"output_size": resizing.size(bound["output_size"], resizing.space.of(node)[bound["dim"]])})


def _cross(resizing: Resizing, node: Node) -> Change | None:
    """Left out, the dimension is the first of size three, and another one may come to have that size."""
    if arguments(node)["dim"] is not None:
        return None
    return Change({"dim": next(place for place, dim in enumerate(resizing.space.of(node)) if dim.size == 3)})


def _pad(resizing: Resizing, node: Node) -> Change | None:
    """Padding laid around a dimension shrinks with it; the amounts are listed from the last dimension."""
    bound = arguments(node)
    source, result, amounts = resizing.space.of(bound["self"]), resizing.space.of(node), list(bound["pad"])
    for pair in range(len(amounts) // 2):
        place = len(source) - 1 - pair
        if resizing.after(result[place]) == result[place].size:
            continue
        pieces = _pieces(result[place], amounts[2 * pair], source[place].size)
        amounts[2 * pair], amounts[2 * pair + 1] = resizing.after(pieces[0]), resizing.after(pieces[2])
    return Change({"pad": amounts})


_ROWS: tuple[tuple[Row, tuple[Any, ...]], ...] = (
    (
        _view,
        (
            aten.view.default,
            aten._unsafe_view.default,
            aten.expand.default,
            aten.broadcast_to.default,
            aten.zeros.default,
            aten.ones.default,
            aten.full.default,
            aten.new_zeros.default,
            aten.new_ones.default,
            aten.new_full.default,
        ),
    ),
    (_reshape, (aten.reshape.default,)),
    (_unflatten, (aten.unflatten.int,)),
    (_squeeze, (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)),
    (
        _groups,
        (*CONVOLUTIONS, aten.convolution.default, *TRANSPOSED),
    ),
    (_shuffled_groups, (aten.channel_shuffle.default, aten.native_channel_shuffle.default)),
    (_group_norm, (aten.group_norm.default, aten.native_group_norm.default)),
    (_normalised_shape, (aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default)),
    (_attention, (aten.scaled_dot_product_attention.default,)),
    (
        _split,
        (
            aten.split.Tensor,
            aten.split.sizes,
            aten.split_with_sizes.default,
            aten.chunk.default,
            aten.tensor_split.sections,
            aten.tensor_split.indices,
            aten.unsafe_split.Tensor,
            aten.unsafe_split_with_sizes.default,
            aten.unsafe_chunk.default,
            aten.hsplit.int,
            aten.hsplit.array,
            aten.vsplit.int,
            aten.vsplit.array,
            aten.dsplit.int,
            aten.dsplit.array,
        ),
    ),
    (_slice, (aten.slice.Tensor, aten.slice_scatter.default)),
    (_roll, (aten.roll.default,)),
    (_narrow, (aten.narrow.default,)),
    (_pad, (aten.pad.default, aten.constant_pad_nd.default)),
    (_repeat_interleave, (aten.repeat_interleave.self_int,)),
    (_cross, (aten.cross.default,)),
)

RESIZES: dict[Any, Row] = {target: row for row, targets in _ROWS for target in targets}


def resize(resizing: Resizing, node: Node) -> Change | None:
    """The change a node needs so that it computes on the new widths, or None."""
    row = RESIZES.get(node.target)
    if row is None or not resizing.touches(node):
        return None
    return row(resizing, node)
