"""Attention and table lookups."""

from __future__ import annotations

from torch.fx import Node

from fxcompress.ops.arguments import arguments, hints
from fxcompress.ops.dimensions.space import Space, Value


def scaled_dot_product_attention(space: Space, node: Node) -> Value:
    """q[.., L, E], k[.., S, E], v[.., S, V] => y[.., L, V]; grouped queries have KV * R heads."""
    bound = arguments(node)
    q, k, v = (space.of(bound[name]) for name in ("query", "key", "value"))
    space.unify(node, q[-1], k[-1])
    space.unify(node, k[-2], v[-2])
    space.freeze(node, k[-2], "attended over")
    if bound["is_causal"]:
        space.freeze(node, q[-2], "positions compared with each other")
    heads = q[:-2]
    if bound.get("enable_gqa") and q[-3].size != k[-3].size:
        shared, _ = space.factor(node, q[-3], [k[-3].size, q[-3].size // k[-3].size])
        space.unify(node, k[-3], shared)
        space.unify(node, k[-3], v[-3])
        space.broadcast(node, [q[:-3], k[:-3], v[:-3]])
    else:
        heads = space.broadcast(node, [q[:-2], k[:-2], v[:-2]])
    if isinstance(bound.get("attn_mask"), Node):
        space.broadcast(node, [(*heads, q[-2], k[-2]), space.of(bound["attn_mask"])])
    return (*heads, q[-2], v[-1])


def embedding(space: Space, node: Node) -> Value:
    """w[V, C], ids[..] => y[.., C]; the rows are addressed by value and stay."""
    bound = arguments(node)
    weight, ids = space.of(bound["weight"]), space.of(bound["indices"])
    space.freeze(node, weight[0], "rows of an indexed table")
    return (*ids, *weight[1:])


def index(space: Space, node: Node) -> Value:
    """x[i, j, ..]: indexed dimensions are addressed by value; adjacent indices are replaced by their
    broadcast shape.
    """
    bound = arguments(node)
    x = space.of(bound["self"])
    slots = [*bound["indices"], *[None] * (len(x) - len(bound["indices"]))]
    places = [place for place, slot in enumerate(slots) if slot is not None]
    keys = [space.of(slots[place]) for place in places]
    space.freeze(node, [x[place] for place in places], "rows of an indexed table")
    adjacent = places == list(range(places[0], places[-1] + 1))
    boolean = any(slots[place].meta["val"].dtype.itemsize == 1 for place in places)
    if not adjacent or boolean:
        space.freeze(node, x, "indexing that moves dimensions")
        return space.fixed(node, hints(node.meta["val"]), "indexing that moves dimensions")
    return (*x[: places[0]], *space.broadcast(node, keys), *x[places[-1] + 1 :])


def index_select(space: Space, node: Node) -> Value:
    """x[.., N, ..] by ids[M] => y[.., M, ..]"""
    bound = arguments(node)
    dims = list(space.of(bound["self"]))
    place = bound["dim"] % len(dims)
    space.freeze(node, dims[place], "rows of an indexed table")
    dims[place] = (*space.of(bound["index"]), space.unit(node))[0]
    return tuple(dims)
