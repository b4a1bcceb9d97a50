"""Tables, gathering and scattering: positions that are addressed by value stay, the others pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from fxcompress.axes.expression import Dim, concat, frozen
from fxcompress.ops.arguments import arguments, hints
from fxcompress.ops.dimensions.layout import bounds
from fxcompress.ops.dimensions.space import Dims, Space, Value

_ROWS = "rows of an indexed table"


def embedding(space: Space, node: Node) -> Value:
    """w[V, C], ids[..] => y[.., C]; the rows are addressed by value and stay."""
    bound = arguments(node)
    weight, ids = space.of(bound["weight"]), space.of(bound["indices"])
    space.freeze(node, weight[0], _ROWS)
    return (*ids, *weight[1:])


def embedding_bag(space: Space, node: Node) -> Value:
    """w[V, C] => y[B, C], and bookkeeping of which nothing can go."""
    weight = space.of(arguments(node)["weight"])
    space.freeze(node, weight[0], _ROWS)
    first, *rest = node.meta["val"]
    bags = space.fixed(node, first.shape[:1], "bags of rows")
    return [(*bags, weight[1]), *(space.fixed(node, value.shape, "bookkeeping of a sum") for value in rest)]


def _keys(space: Space, node: Node) -> tuple[list[int], list[Dims]] | None:
    """Which dimensions are indexed, and by what; None where the result's order is another."""
    bound = arguments(node)
    slots = bound["indices"]
    places = [place for place, slot in enumerate(slots) if slot is not None]
    adjacent = places == list(range(places[0], places[-1] + 1))
    boolean = any(slots[place].meta["val"].dtype.itemsize == 1 for place in places)
    if not adjacent or boolean:
        return None
    space.freeze(node, [space.of(bound["self"])[place] for place in places], _ROWS)
    return places, [space.of(slots[place]) for place in places]


def index(space: Space, node: Node) -> Value:
    """x[i, j, ..]: indexed dimensions are addressed by value; adjacent indices are replaced by their
    broadcast shape.
    """
    x = space.of(arguments(node)["self"])
    found = _keys(space, node)
    if found is None:
        space.freeze(node, x, "indexing that moves dimensions")
        return space.fixed(node, hints(node.meta["val"]), "indexing that moves dimensions")
    places, keys = found
    return (*x[: places[0]], *space.broadcast(node, keys), *x[places[-1] + 1 :])


def index_put(space: Space, node: Node) -> Value:
    """x[i, j, ..] = v: what is written has the dimensions of what would be read."""
    bound = arguments(node)
    x, written = space.of(bound["self"]), space.of(bound["values"])
    found = _keys(space, node)
    if found is None:
        space.freeze(node, (*x, *written), "indexing that moves dimensions")
    else:
        places, keys = found
        read = (*x[: places[0]], *space.broadcast(node, keys), *x[places[-1] + 1 :])
        space.broadcast(node, [read, written])
    return x


def index_select(space: Space, node: Node) -> Value:
    """x[.., N, ..] by ids[M] => y[.., M, ..]"""
    bound = arguments(node)
    dims = list(space.of(bound["self"]))
    place = bound["dim"] % len(dims)
    space.freeze(node, dims[place], _ROWS)
    dims[place] = (*space.of(bound["index"]), space.unit(node))[0]
    return tuple(dims)


def index_write(space: Space, node: Node) -> Value:
    """`index_add`, `index_copy`, `index_fill`: x[.., ids, ..] is written to along one dimension."""
    bound = arguments(node)
    x = space.of(bound["self"])
    place = bound["dim"] % len(x) if x else 0
    space.freeze(node, x[place : place + 1], _ROWS)
    if isinstance(bound.get("source"), Node):
        _beside(space, node, x, space.of(bound["source"]), place)
    return x


def gather(space: Space, node: Node) -> Value:
    """x[.., N, ..] by ids[.., M, ..] => y[.., M, ..]; the other dimensions of ids are those of x."""
    bound = arguments(node)
    x, ids = space.of(bound["self"]), space.of(bound["index"])
    place = bound["dim"] % len(x)
    space.freeze(node, x[place], _ROWS)
    for other, (mine, given) in enumerate(zip(x, ids, strict=True)):
        if other != place:
            _same_or_frozen(space, node, mine, given)
    return ids


def take_along_dim(space: Space, node: Node) -> Value:
    """`gather` whose other dimensions are broadcast; without a dimension, of everything in one row."""
    bound = arguments(node)
    x, ids = space.of(bound["self"]), space.of(bound["indices"])
    if bound["dim"] is None:
        space.freeze(node, (*x, *ids), _ROWS)
        return space.fixed(node, hints(node.meta["val"]), _ROWS)
    place = bound["dim"] % len(x)
    space.freeze(node, (x[place], ids[place]), _ROWS)
    beside = [(*dims[:place], space.unit(node), *dims[place + 1 :]) for dims in (x, ids)]
    result = list(space.broadcast(node, beside))
    result[place] = ids[place]
    return tuple(result)


def scatter(space: Space, node: Node) -> Value:
    """A tensor with v[.., M, ..] written, or added, at ids[.., M, ..] along one dimension."""
    bound = arguments(node)
    x, ids = space.of(bound["self"]), space.of(bound["index"])
    place = bound["dim"] % len(x)
    _beside(space, node, x, ids, place)
    if isinstance(bound.get("src"), Node):
        _beside(space, node, x, space.of(bound["src"]), place)
    return x


def _beside(space: Space, node: Node, x: Dims, given: Dims, place: int) -> None:
    """`given` lies beside `x` in all dimensions but one, whose positions are addressed by value."""
    space.freeze(node, (x[place], given[place]), _ROWS)
    for other, (mine, its) in enumerate(zip(x, given, strict=True)):
        if other != place:
            _same_or_frozen(space, node, mine, its)


def _same_or_frozen(space: Space, node: Node, a: Dim, b: Dim) -> None:
    """Equal sizes are the same positions; of unequal ones only the first are met, and both stay."""
    if a.size == b.size:
        space.unify(node, a, b)
    else:
        space.freeze(node, (a, b), "read or written in part")


def select_scatter(space: Space, node: Node) -> Value:
    """A tensor with v written at one position of a dimension, which therefore stays."""
    bound = arguments(node)
    x, written = space.of(bound["self"]), space.of(bound["src"])
    place = bound["dim"] % len(x)
    space.freeze(node, x[place], "one position is written")
    _unify_all(space, node, (*x[:place], *x[place + 1 :]), written)
    return x


def slice_scatter(space: Space, node: Node) -> Value:
    """x[start:end] = v: the piece that is written is the same as v."""
    bound = arguments(node)
    x, written = list(space.of(bound["self"])), space.of(bound["src"])
    place = bound["dim"] % len(x)
    dim, size = x[place], x[place].size
    found = bounds(bound["start"], bound["end"], size)
    if found == (0, size) and bound["step"] == 1:
        _unify_all(space, node, tuple(x), written)
        return tuple(x)
    if frozen(dim) or found is None or bound["step"] != 1:
        space.freeze(node, (dim, written[place]), "written at positions that stay")
    else:
        before, inside, after = space.split(node, dim, [found[0], found[1] - found[0], size - found[1]])
        space.unify(node, inside, written[place])
        x[place] = concat(before, inside, after)
    _unify_all(space, node, (*x[:place], *x[place + 1 :]), (*written[:place], *written[place + 1 :]))
    return tuple(x)


def _unify_all(space: Space, node: Node, a: Sequence[Dim], b: Sequence[Dim]) -> None:
    for mine, other in zip(a, b, strict=True):
        space.unify(node, mine, other)
