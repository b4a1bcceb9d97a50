"""Normalisations and reductions. Removing positions that are normalised over changes the statistics: they
are tagged.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from fxcompress.axes.algebra import normalise_over
from fxcompress.axes.expression import Dim
from fxcompress.ops.arguments import arguments, hints
from fxcompress.ops.dimensions.space import Dims, Space, Value

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def batch_norm(space: Space, node: Node) -> Value:
    """Statistics per channel (dimension 1): every vector has one entry per channel.

    In training, and in an instance norm, the statistics are those of the other dimensions.
    """
    bound = arguments(node)
    x = space.of(bound["input"])
    for name in _PER_CHANNEL:
        if isinstance(bound.get(name), Node):
            space.unify(node, space.of(bound[name])[0], x[1])
    if bound.get("training"):
        _tag(node, (x[0], *x[2:]))
    elif bound.get("use_input_stats"):
        _tag(node, x[2:])
    return x


def native_batch_norm(space: Space, node: Node) -> Value:
    """`batch_norm` of the core dialect: also returns statistics, per channel if at all."""
    x = batch_norm(space, node)
    assert isinstance(x, tuple)
    rest = (hints(value) for value in node.meta["val"][1:])
    channels = x[1]
    return [
        x,
        *(
            (channels,) if sizes == (channels.size,) else space.fixed(node, sizes, "reserved")
            for sizes in rest
        ),
    ]


def _tag(node: Node, dims: Iterable[Dim]) -> None:
    for dim in dims:
        normalise_over(dim, node.name)


def layer_norm(space: Space, node: Node) -> Value:
    """Normalises the last dimensions together; weight and bias have their shape."""
    bound = arguments(node)
    x = space.of(bound["input"])
    rank = len(bound["normalized_shape"])
    for name in ("weight", "bias"):
        if isinstance(bound.get(name), Node):
            for dim, own in zip(x[-rank:], space.of(bound[name]), strict=True):
                space.unify(node, own, dim)
    _tag(node, x[-rank:])
    return x


def native_layer_norm(space: Space, node: Node) -> Value:
    """`layer_norm` of the core dialect: also returns mean and reciprocal deviation."""
    x = layer_norm(space, node)
    assert isinstance(x, tuple)
    rank = len(arguments(node)["normalized_shape"])
    lead = (*x[:-rank], *(space.unit(node) for _ in range(rank)))
    return [x, lead, lead]


def group_norm(space: Space, node: Node) -> Value:
    """x[N, G*I, ..] is normalised over I and what follows; whole groups or positions in every group may
    go.
    """
    bound = arguments(node)
    x = space.of(bound["input"])
    groups = bound["num_groups"] if "num_groups" in bound else bound["group"]
    for name in ("weight", "bias"):
        if isinstance(bound.get(name), Node):
            space.unify(node, space.of(bound[name])[0], x[1])
    inner = space.factor(node, x[1], [groups, x[1].size // groups])[1]
    _tag(node, (inner, *x[2:]))
    return x


def native_group_norm(space: Space, node: Node) -> Value:
    """`group_norm` of the core dialect: also returns mean and reciprocal deviation."""
    x = group_norm(space, node)
    assert isinstance(x, tuple)
    groups = arguments(node)["group"]
    lead = (x[0], space.factor(node, x[1], [groups, x[1].size // groups])[0])
    return [x, lead, lead]


def weight_norm(space: Space, node: Node) -> Value:
    """The weight `v / |v| * g`, the norm over all dimensions but `dim`; the core dialect also returns it."""
    bound = arguments(node)
    v, g = space.of(bound["v"]), space.of(bound["g"])
    place = bound["dim"] % len(v)
    w = space.broadcast(node, [v, g])
    _tag(node, (dim for other, dim in enumerate(v) if other != place))
    return [w, g] if isinstance(node.meta["val"], tuple | list) else w


def softmax(space: Space, node: Node) -> Value:
    """Normalises one dimension."""
    bound = arguments(node)
    x = space.of(bound["self"])
    if x:
        normalise_over(x[bound["dim"]], node.name)
    return x


def reduction(space: Space, node: Node) -> Value:
    """Sums, means and extrema over `dim` (all dimensions when absent); the reduced ones are tagged."""
    bound = arguments(node)
    x = space.of(node.all_input_nodes[0])
    reduced = reduced_places(bound.get("dim"), len(x))
    _tag(node, (x[place] for place in reduced))
    keep = bool(bound.get("keepdim", False))
    kept: list[Dim] = []
    for place, dim in enumerate(x):
        if place not in reduced:
            kept.append(dim)
        elif keep:
            kept.append(space.unit(node))
    value = node.meta["val"]
    return [tuple(kept)] * len(value) if isinstance(value, tuple | list) else tuple(kept)


def ordered_reduction(space: Space, node: Node) -> Value:
    """Reductions that answer with a position, which removal would renumber: the reduced dimensions stay.

    Of `max.dim`, which answers with values as well, only if somebody reads the positions.
    """
    x = space.of(node.all_input_nodes[0])
    if isinstance(node.meta["val"], tuple | list) and all(user.args[1:] == (0,) for user in node.users):
        return reduction(space, node)
    for place in reduced_places(arguments(node).get("dim"), len(x)):
        space.freeze(node, x[place], "its positions are an answer")
    return reduction(space, node)


def kth_value(space: Space, node: Node) -> Value:
    """The k-th smallest of a dimension and where it is: a count of positions, which stay."""
    bound = arguments(node)
    x = space.of(bound["self"])
    if x:
        space.freeze(node, x[bound["dim"]], "its order matters")
    return reduction(space, node)


def quantile(space: Space, node: Node) -> Value:
    """Quantiles over a dimension, which stays; several of them come first."""
    bound = arguments(node)
    x, wanted = space.of(bound["self"]), bound["q"]
    for place in reduced_places(bound["dim"], len(x)):
        space.freeze(node, x[place], "its order matters")
    rest = reduction(space, node)
    assert isinstance(rest, tuple)
    first = space.of(wanted) if isinstance(wanted, Node) else ()
    space.freeze(node, first, "several quantiles")
    return (*first, *rest)


def reduced_places(dim: int | list[int] | None, rank: int) -> set[int]:
    """The non-negative positions of the reduced dimensions; an empty list or None means all."""
    if dim is None or dim == []:
        return set(range(rank))
    return {place % rank for place in ([dim] if isinstance(dim, int) else dim)}


def pooling(space: Space, node: Node) -> Value:
    """The last dimensions are pooled or resampled; batch and channels pass."""
    x = space.of(node.all_input_nodes[0])
    value = node.meta["val"]
    several = isinstance(value, tuple | list)
    sizes = hints(value[0] if several else value)
    lead = 2 if len(x) > 2 and not _unbatched(node, len(x)) else 1
    space.freeze(node, x[lead:], "pooled over")
    dims: Dims = (*x[:lead], *space.fixed(node, sizes[lead:], "spatial positions"))
    return [dims, dims] if several else dims


def _unbatched(node: Node, rank: int) -> bool:
    """Whether a pooling operator is applied to an input without a batch dimension."""
    name = str(node.target)
    spatial = next((place for place in (1, 2, 3) if f"{place}d" in name), rank - 2)
    return rank == spatial + 1
