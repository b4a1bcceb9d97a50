"""Attention over heads as the runtime's own kernel, for targets that name the form.

    q, k, v = Transpose(Reshape(q3, [B, S, H, D]), [0, 2, 1, 3]), ...
    y = Reshape(Transpose(MatMul(Softmax(MatMul(q * a, k^T * c)), v), [0, 2, 1, 3]), [B, S, H * D])
        =>  y = com.microsoft.MultiHeadAttention<num_heads=H, scale=a * c>(q3, k3, v3)

Only without a mask or bias: there the kernel works on blocks of the scores and never stores them all (ViT-S,
one attention of 197 tokens and 6 heads: 1.07 to 0.91 ms; BERT-base, 128 tokens, 12 heads: 0.80 to 0.71 ms).
With an added bias it takes another path and is slower than the parts (Swin's windows: 2.4 to 3.2 ms).

Not written, since measured slower or the same with onnxruntime 1.31 on its CPU provider:
SkipLayerNormalization (197 x 384: 0.44 ms, Add and LayerNormalization 0.08 ms), FastGelu and BiasGelu,
QuickGelu (SiLU), HardSwish: the runtime fuses what is exported to these by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fxcompress.lowering.match import constant, maker, only_read_by

MULTI_HEAD_ATTENTION = "multi-head-attention"
"""The name of the form in a target's `forms`."""

_BY_HEADS = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Heads:
    """Tokens [B, S, H * D] that are read as [B, H, S, D], times `factor`."""

    tokens: Any
    heads: int
    width: int
    factor: float = 1.0


def use_multi_head_attention(graph: Any) -> int:
    """Apply the rule; returns how many attentions became one operator."""
    return sum(_fuse(graph, node) for node in list(graph.nodes) if node.op == "Reshape")


def _fuse(graph: Any, last: Any) -> bool:
    turned = maker(last.inputs[0], "Transpose")
    mixed = maker(turned.inputs[0], "MatMul") if turned is not None else None
    softmax = maker(mixed.inputs[0], "Softmax") if mixed is not None else None
    scores = maker(softmax.inputs[0], "MatMul") if softmax is not None else None
    if turned is None or mixed is None or softmax is None or scores is None:
        return False
    if turned.attrs.get("perm") != _BY_HEADS or softmax.attrs.get("axis", -1) not in (-1, 3):
        return False
    chain = (scores, softmax, mixed, turned, last)
    if not all(only_read_by(graph, one.outputs[0], [reader]) for one, reader in pairwise(chain)):
        return False
    query, value = _heads(scores.inputs[0]), _heads(mixed.inputs[1])
    key = _keys(scores.inputs[1])
    if query is None or key is None or value is None or value.factor != 1.0:
        return False
    if not query.heads == key.heads == value.heads or query.width != key.width:
        return False
    if not _is_tokens(last.outputs[0], value.heads * value.width):
        return False
    if not _same_sizes(last.outputs[0], query.tokens, 2):
        return False  # it regroups the tokens
    if not all(_same_sizes(one.tokens, query.tokens, 1) for one in (key, value)):
        return False  # a product repeats what has one row for all, the kernel does not
    last.op, last.domain = "MultiHeadAttention", "com.microsoft"
    last.attrs = {"num_heads": query.heads, "scale": query.factor * key.factor}
    last.inputs = [query.tokens, key.tokens, value.tokens]
    return True


def _heads(tensor: Any) -> _Heads | None:
    """What a tensor [B, H, S, D] is made of, if it is tokens."""
    inner, factor = _scaled(tensor)
    turned = maker(inner, "Transpose")
    if turned is None or list(turned.attrs.get("perm", [])) != _BY_HEADS:
        return None
    return _split(turned.inputs[0], factor)


def _keys(tensor: Any) -> _Heads | None:
    """What a tensor [B, H, D, S] is made of, if it is tokens."""
    inner, outside = _scaled(tensor)
    turned = maker(inner, "Transpose")
    if turned is None:
        return None
    perm = list(turned.attrs.get("perm", []))
    if perm == [0, 2, 3, 1]:
        return _split(turned.inputs[0], outside)
    found = _heads(turned.inputs[0]) if perm == [0, 1, 3, 2] else None
    return None if found is None else _Heads(found.tokens, found.heads, found.width, found.factor * outside)


def _split(tensor: Any, factor: float) -> _Heads | None:
    """[B, S, H, D] as tokens whose last dimension was cut into heads."""
    cut = maker(tensor, "Reshape")
    shape = list(tensor.shape or [])
    if cut is None or len(shape) != len(_BY_HEADS) or not all(isinstance(size, int) for size in shape[2:]):
        return None
    tokens, (heads, width) = cut.inputs[0], shape[2:]
    if not _is_tokens(tokens, heads * width) or list(tokens.shape)[1] != shape[1]:
        return None
    return _Heads(tokens, heads, width, factor)


def _is_tokens(tensor: Any, width: int) -> bool:
    shape = list(tensor.shape or [])
    return len(shape) == 3 and shape[2] == width and tensor.dtype == np.float32


def _same_sizes(left: Any, right: Any, count: int) -> bool:
    """Whether the first dimensions of two tensors are known to be the same."""
    mine, its = list(left.shape)[:count], list(right.shape)[:count]
    return mine == its and None not in mine


def _scaled(tensor: Any) -> tuple[Any, float]:
    """A tensor without the number it is multiplied by, and that number."""
    product = maker(tensor, "Mul")
    if product is None:
        return tensor, 1.0
    for position in (0, 1):
        number = constant(product.inputs[position])
        if number is not None and number.size == 1:
            return product.inputs[1 - position], float(number.item())
    return tensor, 1.0
