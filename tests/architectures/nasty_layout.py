"""Indexing, joining, packing, sharing, and sums over channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.nasty import Ideas

LAYOUT = Ideas()
idea = LAYOUT.idea

IDS = torch.tensor([[1, 4, 0, 2], [5, 2, 3, 1]])


@idea(lambda: {"a": nn.Linear(5, 16), "b": nn.Linear(8, 3)}, (5,), sizes=(8,))
def packed_glu(m: Any, x: Tensor) -> Tensor:
    """One layer makes value and gate; the head reads half."""
    return m.b(F.glu(m.a(x)))


@idea(lambda: {"a": nn.Linear(5, 16), "b": nn.Linear(8, 3)}, (5,), sizes=(8,))
def packed_geglu(m: Any, x: Tensor) -> Tensor:
    """Value and gate by chunk."""
    value, gate = m.a(x).chunk(2, -1)
    return m.b(value * F.gelu(gate))


@idea(lambda: {"a": nn.Linear(5, 16), "b": nn.Linear(8, 3)}, (5,), sizes=(8,))
def packed_swiglu_interleaved(m: Any, x: Tensor) -> Tensor:
    """Value and gate alternate, as in gpt-oss."""
    x = m.a(x)
    return m.b(x[..., ::2] * F.silu(x[..., 1::2].clamp(max=7)))


@idea(lambda: {"table": nn.Embedding(6, 8), "mix": nn.Linear(8, 8)}, IDS, sizes=(8,))
def tied_embedding(m: Any, ids: Tensor) -> Tensor:
    """The classifier is the table of the inputs."""
    return F.linear(torch.tanh(m.mix(m.table(ids))), m.table.weight)


@idea(
    lambda: {"a": nn.Linear(5, 8), "same": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 3)},
    (5,),
    sizes=(8,),
)
def shared_twice(m: Any, x: Tensor) -> Tensor:
    """One layer called three times, with the norm behind it."""
    x = m.a(x)
    for _ in range(3):
        x = x + torch.tanh(m.norm(m.same(x)))
    return m.head(x)


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(4, 8), "head": nn.Linear(8, 3)}, (5,), (4,), sizes=(8,))
def nested_outputs(m: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Two inputs; a dict of a tuple and a list of dicts, one leaf an inner activation."""
    left, right = torch.tanh(m.a(x)), torch.tanh(m.b(y))
    return {
        "heads": (m.head(left), m.head(right)),
        "more": [{"sum": m.head(left + right)}],
        "mean": left.mean(-1),
    }


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(5, 8), "head": nn.Linear(16, 3)}, (5,), sizes=(8,))
def stacked_then_flattened(m: Any, x: Tensor) -> Tensor:
    """Two tensors stacked outermost, flattened: twice the same channels."""
    return m.head(torch.stack([torch.tanh(m.a(x)), torch.tanh(m.b(x))], 1).flatten(1))


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(5, 8), "head": nn.Linear(16, 3)}, (5,), sizes=(8,))
def stacked_inside(m: Any, x: Tensor) -> Tensor:
    """Stacked innermost: channels alternate."""
    return m.head(torch.stack([torch.tanh(m.a(x)), torch.tanh(m.b(x))], -1).flatten(1))


@idea(lambda: {"a": nn.Linear(5, 8), "head": nn.Linear(4, 3)}, (5,), sizes=(4,))
def unbound(m: Any, x: Tensor) -> Tensor:
    """Channels read as pairs, taken apart, and multiplied."""
    first, second = m.a(x).unflatten(-1, (4, 2)).unbind(-1)
    return m.head(first * torch.sigmoid(second))


@idea(lambda: {"a": nn.Linear(5, 4), "head": nn.Linear(12, 3)}, (5,), sizes=(4,))
def repeated_interleaved(m: Any, x: Tensor) -> Tensor:
    """Every channel three times in a row."""
    return m.head(torch.tanh(m.a(x)).repeat_interleave(3, -1))


@idea(lambda: {"a": nn.Linear(5, 4), "head": nn.Linear(12, 3)}, (5,), sizes=(4,))
def tiled(m: Any, x: Tensor) -> Tensor:
    """All channels three times over."""
    return m.head(torch.tanh(m.a(x)).repeat(1, 3))


@idea(lambda: {"a": nn.Conv2d(3, 6, 3, padding=1), "head": nn.Conv2d(8, 3, 1)}, (3, 4, 4), sizes=(2, 6))
def coordinates(m: Any, x: Tensor) -> Tensor:
    """CoordConv: two channels that are positions, from a meshgrid."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 4), indexing="ij")
    grid = torch.stack([rows, columns])[None].expand(x.shape[0], -1, -1, -1)
    return m.head(torch.cat([F.relu(m.a(x)), grid], 1))


@idea(
    lambda: {"a": nn.Linear(5, 8), "scale": nn.Linear(4, 16), "head": nn.Linear(8, 3)}, (5,), (4,), sizes=(8,)
)
def film(m: Any, x: Tensor, condition: Tensor) -> Tensor:
    """Gain and offset per channel come from a condition."""
    gain, offset = m.scale(condition).chunk(2, -1)
    return m.head(torch.tanh(m.a(x)) * (1 + gain) + offset)


@idea(
    lambda: {"a": nn.Linear(5, 8), "gain": nn.Parameter(torch.ones(8)), "head": nn.Linear(8, 3)},
    (5,),
    sizes=(8,),
)
def rms_norm_by_hand(m: Any, x: Tensor) -> Tensor:
    """The mean square over channels, in the order of Llama."""
    x = m.a(x)
    return m.head(m.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))


@idea(
    lambda: {"a": nn.Linear(5, 8), "head": nn.Linear(8, 3), "ids": torch.tensor([0, 2, 3])},
    (4, 5),
    sizes=(8,),
)
def gathered_rows(m: Any, x: Tensor) -> Tensor:
    """Positions are gathered by an index that is expanded over the channels."""
    x = torch.tanh(m.a(x))
    index = m.ids[None, :, None].expand(x.shape[0], -1, x.shape[-1])
    return m.head(x.gather(1, index))


@idea(
    lambda: {
        "a": nn.Linear(5, 8),
        "up": nn.Linear(3, 24),
        "head": nn.Linear(24, 3),
        "ids": torch.tensor([0, 2, 5]),
    },
    (5,),
    sizes=(24,),
)
def gathered_channels(m: Any, x: Tensor) -> Tensor:
    """Channels are gathered by number, so they stay; those after them go."""
    x = torch.tanh(m.a(x)).gather(1, m.ids[None].expand(x.shape[0], -1))
    return m.head(torch.tanh(m.up(x)))


@idea(
    lambda: {"a": nn.Linear(5, 8), "head": nn.Linear(8, 3), "ids": torch.tensor([0, 2, 1, 2])},
    (4, 5),
    sizes=(8,),
)
def scattered_rows(m: Any, x: Tensor) -> Tensor:
    """Messages of four edges are summed into three nodes."""
    x = torch.tanh(m.a(x))
    index = m.ids[None, :, None].expand_as(x)
    sums = torch.zeros(x.shape[0], 3, 8).scatter_add(1, index, x)
    return m.head(sums)


@idea(
    lambda: {"a": nn.Linear(5, 8), "head": nn.Linear(8, 3), "ids": torch.tensor([0, 2, 1, 2])},
    (4, 5),
    sizes=(8,),
)
def index_added_rows(m: Any, x: Tensor) -> Tensor:
    """The same by `index_add`."""
    x = torch.tanh(m.a(x))
    return m.head(torch.zeros(x.shape[0], 3, 8).index_add(1, m.ids, x))


@idea(
    lambda: {"a": nn.Linear(5, 8), "head": nn.Linear(8, 3), "ids": torch.tensor([0, 3])}, (4, 5), sizes=(8,)
)
def overwritten_rows(m: Any, x: Tensor) -> Tensor:
    """Two positions are written over, by slice and by number."""
    x = torch.tanh(m.a(x))
    y = x.clone()
    y[:, 1] = x[:, 0]
    y[:, 2:3] = 2 * x[:, :1]
    y[:, m.ids] = y[:, m.ids] * 0.5
    return m.head(y)


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(5, 3), "head": nn.Linear(8, 3)}, (5,), sizes=(2, 3, 3))
def overwritten_channels(m: Any, x: Tensor) -> Tensor:
    """Three of eight channels come from another layer."""
    y = torch.tanh(m.a(x)).clone()
    y[:, 2:5] = torch.tanh(m.b(x))
    return m.head(y)


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(8, 6), "head": nn.Linear(3, 3)}, (5,), sizes=(8,))
def top_channels(m: Any, x: Tensor) -> Tensor:
    """The three largest channels: which they are is decided at run time."""
    return m.head(torch.tanh(m.b(torch.tanh(m.a(x)))).topk(3, -1).values)


@idea(
    lambda: {"a": nn.Linear(5, 8), "keys": nn.Parameter(torch.randn(4, 8)), "head": nn.Linear(4, 3)},
    (5,),
    sizes=(4, 8),
)
def cosine_to_prototypes(m: Any, x: Tensor) -> Tensor:
    """Angles to stored prototypes."""
    return m.head(F.cosine_similarity(m.a(x)[:, None], m.keys[None], dim=-1))


@idea(
    lambda: {"a": nn.Linear(5, 8), "keys": nn.Parameter(torch.randn(4, 8)), "head": nn.Linear(4, 3)},
    (5,),
    sizes=(4, 8),
)
def distance_to_prototypes(m: Any, x: Tensor) -> Tensor:
    """Distances to stored prototypes by `cdist`."""
    return m.head(torch.cdist(m.a(x), m.keys).neg().exp())


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(8, 6), "head": nn.Linear(6, 3)}, (5,), sizes=(6, 8))
def normalised_features(m: Any, x: Tensor) -> Tensor:
    """Unit length, then a softmax over channels."""
    return m.head(torch.softmax(m.b(F.normalize(m.a(x), dim=-1)), -1))


@idea(
    lambda: {
        "a": nn.Linear(5, 4),
        "b": nn.Linear(3, 6),
        "join": nn.Bilinear(4, 6, 8),
        "head": nn.Linear(8, 3),
    },
    (5,),
    (3,),
    sizes=(4, 6, 8),
)
def bilinear(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """Every pair of channels of two layers."""
    return m.head(torch.tanh(m.join(torch.tanh(m.a(x)), torch.tanh(m.b(y)))))


@idea(
    lambda: {"bag": nn.EmbeddingBag(6, 8, mode="sum"), "head": nn.Linear(8, 3)},
    IDS,
    sizes=(8,),
)
def embedding_bag(m: Any, ids: Tensor) -> Tensor:
    """Rows of a table are summed per sample."""
    return m.head(torch.tanh(m.bag(ids)))


@idea(
    lambda: {"a": nn.Linear(5, 8), "up": nn.Linear(8, 16), "head": nn.Linear(16, 3)},
    (5,),
    sizes=(16,),
)
def summed_so_far(m: Any, x: Tensor) -> Tensor:
    """A cumulative sum over channels: their order matters, so they stay; those after them go."""
    return m.head(torch.tanh(m.up(torch.cumsum(torch.tanh(m.a(x)), -1))))


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(8, 6), "head": nn.Linear(6, 3)}, (5,), sizes=(2, 3, 5))
def rolled_channels(m: Any, x: Tensor) -> Tensor:
    """Channels move by two, and meet themselves where they were."""
    x = torch.tanh(m.a(x))
    y = torch.tanh(m.b(torch.roll(x, 3, -1)))
    return m.head(y + torch.roll(y, 2, -1))


@idea(lambda: {"a": nn.Linear(5, 6), "b": nn.Linear(6, 10), "head": nn.Linear(10, 3)}, (5,), sizes=(3, 6))
def padded_channels(m: Any, x: Tensor) -> Tensor:
    """Zeros around a narrower tensor so that it can be added."""
    x = torch.tanh(m.a(x))
    return m.head(torch.tanh(m.b(x)) + F.pad(x, (1, 3)))


@idea(
    lambda: {
        "route": nn.Linear(8, 4),
        "enter": nn.Linear(5, 8),
        "up": nn.Parameter(torch.randn(4, 8, 6)),
        "down": nn.Parameter(torch.randn(4, 6, 8)),
        "head": nn.Linear(8, 3),
    },
    (5,),
    sizes=(6, 8, 8),
)
def mixture_of_experts(m: Any, x: Tensor) -> Tensor:
    """Four experts, all computed, the two best weighted."""
    x = m.enter(x)
    best = m.route(x).topk(2, -1)
    gates = torch.zeros(x.shape[0], 4).scatter(1, best.indices, best.values.softmax(-1))
    hidden = torch.einsum("bd,edf->bef", x, m.up).relu()
    return m.head(torch.einsum("bef,efd,be->bd", hidden, m.down, gates))


@idea(lambda: {"a": nn.Linear(5, 8), "b": nn.Linear(8, 8), "head": nn.Linear(8, 3)}, (5,), sizes=(8,))
def without_gradient(m: Any, x: Tensor) -> Tensor:
    """A block under `no_grad` and one under `set_grad_enabled`."""
    x = torch.tanh(m.a(x))
    with torch.no_grad():
        target = torch.tanh(m.b(x))
    with torch.set_grad_enabled(True):
        x = x + target
    return m.head(x)


@idea(lambda: {"a": nn.Linear(5, 6), "b": nn.Linear(5, 6), "head": nn.Linear(6, 3)}, (5,), sizes=(6,))
def implicit_einsum(m: Any, x: Tensor) -> Tensor:
    """An outer product without an arrow, and its diagonal."""
    outer = torch.einsum("bi,bj->bij", torch.tanh(m.a(x)), torch.tanh(m.b(x)))
    return m.head(torch.einsum("...ii->...i", outer))


@idea(lambda: {"a": nn.Linear(5, 16), "head": nn.Linear(4, 3)}, (5,), sizes=(4,))
def diagonal_of_channels(m: Any, x: Tensor) -> Tensor:
    """Channels read as a square whose diagonal counts."""
    return m.head(torch.tanh(m.a(x)).view(-1, 4, 4).diagonal(dim1=1, dim2=2))


@idea(
    lambda: {"a": nn.Linear(5, 16), "up": nn.Linear(16, 12), "head": nn.Linear(12, 3)},
    (5,),
    sizes=(12,),
    unknown=("as_strided",),
)
def raw_strides(m: Any, x: Tensor) -> Tensor:
    """`as_strided` reads memory as it likes: all of what it reads stays."""
    x = torch.tanh(m.a(x)).contiguous()
    return m.head(torch.tanh(m.up(torch.as_strided(x, (2, 16), (16, 1)))))


@idea(lambda: {"up": nn.Linear(5, 8), "mean": nn.Linear(8, 4), "head": nn.Linear(16, 3)}, (5,), sizes=(4, 8))
def outer_product(m: Any, x: Tensor) -> Tensor:
    """Every channel times every channel of the same tensor, flattened."""
    x = torch.tanh(m.mean(torch.tanh(m.up(x))))
    return m.head((x[:, :, None] * x[:, None, :]).flatten(1))
