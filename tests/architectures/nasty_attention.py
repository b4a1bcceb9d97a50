"""Attention in every spelling: heads, groups of heads, packed projections, positions, masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.nasty import Ideas

ATTENTION = Ideas()
idea = ATTENTION.idea

H, D, T = 4, 4, 6  # heads, head width, positions
SDPA = F.scaled_dot_product_attention


def heads(x: Tensor, count: int) -> Tensor:
    """[B, T, H*D] => [B, H, T, D]"""
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """[B, H, T, D] => [B, T, H*D]"""
    return x.transpose(1, 2).flatten(2)


def projections(width: int = 8, kv: int = H, head: int = D, heads: int = H) -> dict[str, Any]:
    return {
        "enter": nn.Linear(5, width),
        "q": nn.Linear(width, heads * head),
        "k": nn.Linear(width, kv * head),
        "v": nn.Linear(width, kv * head),
        "leave": nn.Linear(heads * head, 3),
    }


def packed(width: int = 8) -> dict[str, Any]:
    return {"enter": nn.Linear(5, width), "qkv": nn.Linear(width, 3 * H * D), "leave": nn.Linear(H * D, 3)}


def angles(length: int, width: int) -> Tensor:
    return torch.arange(length)[:, None] / 10 ** (torch.arange(width) / width)


@idea(lambda: projections(kv=2), (T, 5), sizes=(2, 2, 4, 4, 8))
def gqa_by_expand(m: Any, x: Tensor) -> Tensor:
    """Keys of two heads, each expanded to two query heads by a view over a repeated dimension."""
    x = m.enter(x)
    q, k, v = heads(m.q(x), H), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(t.shape[0], H, T, D) for t in (k, v))
    return m.leave(joined(SDPA(q, k, v)))


@idea(lambda: projections(kv=2), (T, 5), sizes=(2, 2, 4, 4, 8))
def gqa_by_flag(m: Any, x: Tensor) -> Tensor:
    """`enable_gqa`: the operator repeats the heads itself."""
    x = m.enter(x)
    q, k, v = heads(m.q(x), H), heads(m.k(x), 2), heads(m.v(x), 2)
    return m.leave(joined(SDPA(q, k, v, enable_gqa=True)))


@idea(lambda: projections(kv=2), (T, 5), sizes=(2, 4, 4, 8))
def gqa_by_repeat_interleave(m: Any, x: Tensor) -> Tensor:
    """Each key head twice in a row; the count of repeats stays."""
    x = m.enter(x)
    q, k, v = heads(m.q(x), H), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    return m.leave(joined(SDPA(q, k, v)))


@idea(lambda: projections(kv=1), (T, 5), sizes=(4, 4, 4, 8))
def multi_query(m: Any, x: Tensor) -> Tensor:
    """One key head that all query heads read by broadcasting."""
    x = m.enter(x)
    q, k, v = heads(m.q(x), H), m.k(x)[:, None], m.v(x)[:, None]
    weights = (q @ k.transpose(-1, -2) * D**-0.5).softmax(-1)
    return m.leave(joined(weights @ v))


@idea(lambda: {**projections(), "angle": angles(T, D // 2)}, (T, 5), sizes=(2, 4, 4, 8))
def rotary_halves(m: Any, x: Tensor) -> Tensor:
    """The two halves of a head are rotated against each other."""

    def rotate(t: Tensor) -> Tensor:
        cosine, sine = (torch.cat([f(m.angle)] * 2, -1) for f in (torch.cos, torch.sin))
        first, second = t[..., : D // 2], t[..., D // 2 :]
        return t * cosine + torch.cat([-second, first], -1) * sine

    x = m.enter(x)
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    return m.leave(joined(SDPA(rotate(q), rotate(k), v)))


@idea(lambda: {**projections(), "angle": angles(T, D // 2)}, (T, 5), sizes=(2, 4, 4, 8))
def rotary_interleaved(m: Any, x: Tensor) -> Tensor:
    """Even positions against odd ones, put back by stack and flatten."""

    def rotate(t: Tensor) -> Tensor:
        even, odd = t[..., ::2], t[..., 1::2]
        cosine, sine = m.angle.cos(), m.angle.sin()
        return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1).flatten(-2)

    x = m.enter(x)
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    return m.leave(joined(SDPA(rotate(q), rotate(k), v)))


@idea(lambda: {**projections(), "angle": angles(T, D // 2)}, (T, 5), sizes=(2, 4, 4, 8))
def rotary_complex(m: Any, x: Tensor) -> Tensor:
    """Pairs are complex numbers, turned by a table of phases."""

    def rotate(t: Tensor) -> Tensor:
        turned = torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2)) * phases
        return torch.view_as_real(turned).flatten(-2)

    phases = torch.polar(torch.ones_like(m.angle), m.angle)
    x = m.enter(x)
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    return m.leave(joined(SDPA(rotate(q), rotate(k), v)))


@idea(packed, (T, 5), sizes=(4, 4, 8))
def packed_qkv_reshape(m: Any, x: Tensor) -> Tensor:
    """One projection read as [3, H, D] and taken apart by position."""
    qkv = m.qkv(m.enter(x)).reshape(x.shape[0], T, 3, H, D).permute(2, 0, 3, 1, 4)
    return m.leave(joined(SDPA(qkv[0], qkv[1], qkv[2])))


@idea(packed, (T, 5), sizes=(4, 4, 4, 8))
def packed_qkv_chunk(m: Any, x: Tensor) -> Tensor:
    """One projection cut in three along the channels: not tied to each other but by the heads."""
    q, k, v = (heads(part, H) for part in m.qkv(m.enter(x)).chunk(3, -1))
    return m.leave(joined(SDPA(q, k, v)))


@idea(packed, (T, 5), sizes=(4, 4, 8))
def packed_qkv_unbind(m: Any, x: Tensor) -> Tensor:
    """Heads outermost, [H, 3, D], unbound along the middle factor."""
    q, k, v = m.qkv(m.enter(x)).unflatten(-1, (H, 3, D)).permute(0, 2, 1, 3, 4).unbind(3)
    return m.leave(joined(SDPA(q, k, v)))


@idea(lambda: {**projections(), "other": nn.Linear(4, 8)}, (T, 5), (3, 4), sizes=(4, 4, 4, 8, 8))
def cross_attention(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """Queries of one sequence, keys and values of another of another length."""
    q, y = heads(m.q(m.enter(x)), H), m.other(y)
    return m.leave(joined(SDPA(q, heads(m.k(y), H), heads(m.v(y), H))))


def _window_index() -> Tensor:
    place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
    distance = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + 1
    return distance[..., 0] * 3 + distance[..., 1]


@idea(
    lambda: {**packed(), "table": nn.Parameter(torch.randn(9, H)), "index": _window_index()},
    (4, 4, 5),
    sizes=(4, 4, 8),
)
def shifted_windows(m: Any, x: Tensor) -> Tensor:
    """Swin: roll, cut into windows, a bias per head from a table by relative position, and back."""
    x = torch.roll(m.enter(x), (-1, -1), (1, 2))
    batch, width = x.shape[0], x.shape[-1]
    x = x.view(batch, 2, 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, width)
    q, k, v = m.qkv(x).reshape(-1, 4, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    bias = m.table[m.index.view(-1)].view(4, 4, H).permute(2, 0, 1)
    weights = (q * D**-0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
    x = m.leave((weights @ v).transpose(1, 2).reshape(-1, 4, H * D))
    x = x.view(batch, 2, 2, 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, 3)
    return torch.roll(x, (1, 1), (1, 2))


@idea(lambda: {**projections(), "buckets": nn.Embedding(8, H)}, (T, 5), sizes=(4, 4, 4, 8))
def t5_buckets(m: Any, x: Tensor) -> Tensor:
    """A learned bias per head from logarithmic buckets of the distance."""
    place = torch.arange(T)
    distance = (place[None] - place[:, None]).abs()
    bucket = torch.where(distance < 3, distance, 3 + (distance.float() / 3).log2().long()).clamp(max=7)
    x = m.enter(x)
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    bias = m.buckets(bucket).permute(2, 0, 1)[None]
    return m.leave(joined((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v))


@idea(
    lambda: {
        "token": nn.Parameter(torch.randn(1, 1, 8)),
        "place": nn.Parameter(torch.randn(1, T + 1, 8)),
        **projections(),
    },
    (T, 5),
    sizes=(4, 4, 4, 8),
)
def class_token(m: Any, x: Tensor) -> Tensor:
    """A learned token in front, positions added, only the token read."""
    x = m.enter(x)
    x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.place
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    return m.leave(joined(SDPA(q, k, v))[:, 0])


@idea(
    lambda: {"queries": nn.Embedding(3, 8), **projections(), "box": nn.Linear(3, 4)},
    (T, 5),
    sizes=(4, 4, 4, 8, 8),
)
def learned_queries(m: Any, x: Tensor) -> dict[str, Tensor]:
    """DETR: queries that are a table's rows, repeated over the batch; two heads on one output."""
    x = m.enter(x)
    q = m.queries.weight[None].repeat(x.shape[0], 1, 1)
    mixed = joined(SDPA(heads(m.q(q), H), heads(m.k(x), H), heads(m.v(x), H)))
    found = m.leave(mixed)
    return {"logits": found, "boxes": m.box(torch.tanh(found)).sigmoid()}


@idea(projections, (T, 5), sizes=(4, 4, 4, 8))
def einsum_attention(m: Any, x: Tensor) -> Tensor:
    """Heads, scores and mixing in einsum, one of them with an ellipsis."""
    x = m.enter(x)
    q, k, v = (layer(x).view(x.shape[0], T, H, D) for layer in (m.q, m.k, m.v))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
    mixed = torch.einsum("bhij,bjhd->bihd", weights, v)
    return torch.einsum("...c,oc->...o", mixed.flatten(2), m.leave.weight)


@idea(
    lambda: {
        "enter": nn.Linear(5, 8),
        "mix": nn.MultiheadAttention(8, 2, batch_first=True),
        "leave": nn.Linear(8, 3),
    },
    (T, 5),
    sizes=(2, 4, 8, 8),
)
def multihead_attention(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own module, with its averaged weights as a second output."""
    x = m.enter(x)
    x, weights = m.mix(x, x, x)
    return m.leave(x), weights


@idea(
    lambda: {
        "enter": nn.Linear(5, 8),
        "leave": nn.Linear(8, 3),
        "layer": nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True),
    },
    (T, 5),
    sizes=(2, 4, 8, 12),
)
def encoder_layer(m: Any, x: Tensor) -> Tensor:
    """PyTorch's own encoder layer: packed weights, a residual stream, two layer norms."""
    return m.leave(m.layer(m.enter(x)).mean(1))


@idea(lambda: {**projections(), "mask": torch.ones(T, T).tril().bool()}, (T, 5), sizes=(4, 4, 4, 8))
def masked_scores(m: Any, x: Tensor) -> Tensor:
    """A boolean mask buffer and the dtype's minimum, by hand."""
    x = m.enter(x)
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    scores = (q @ k.transpose(-1, -2) * D**-0.5).masked_fill(~m.mask, -1e9)
    return m.leave(joined(scores.softmax(-1) @ v))


@idea(lambda: {**projections(), "mix": nn.Conv2d(H, H, 1)}, (T, 5), sizes=(4, 4, 4, 4, 8))
def talking_heads(m: Any, x: Tensor) -> Tensor:
    """A convolution over the heads between scores and softmax: heads are channels."""
    x = m.enter(x)
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    return m.leave(joined(m.mix(q @ k.transpose(-1, -2)).softmax(-1) @ v))


@idea(
    lambda: {**projections(), "norm": nn.LayerNorm(D), "scale": nn.Parameter(torch.ones(H, 1, 1))},
    (T, 5),
    sizes=(4, 4, 4, 8),
)
def normalised_queries(m: Any, x: Tensor) -> Tensor:
    """Layer norm per head, cosine scores and a temperature per head."""
    x = m.enter(x)
    q, k, v = (heads(layer(x), H) for layer in (m.q, m.k, m.v))
    scores = F.normalize(m.norm(q), dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * m.scale
    return m.leave(joined(scores.softmax(-1) @ v))


@idea(
    lambda: {"enter": nn.Conv2d(3, 8, 1), "qkv": nn.Conv2d(8, 24, 1), "leave": nn.Conv2d(8, 3, 1)},
    (3, 4, 4),
    sizes=(2, 4, 4, 8),
)
def linear_attention(m: Any, x: Tensor) -> Tensor:
    """Channels attend to channels: softmax over the head width, keys times values first."""
    x = m.enter(x)
    q, k, v = (t.unflatten(1, (2, 4)).flatten(3) for t in m.qkv(x).chunk(3, 1))
    context = k.softmax(-1) @ v.transpose(-1, -2)
    mixed = context.transpose(-1, -2) @ q.softmax(-2)
    return m.leave(mixed.reshape(x.shape[0], 8, 4, 4))
