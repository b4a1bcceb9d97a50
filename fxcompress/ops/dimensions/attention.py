"""Attention as one operator."""

from __future__ import annotations

from torch.fx import Node

from fxcompress.ops.arguments import arguments
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
