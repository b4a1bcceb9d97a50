"""Attention written in the ways of the field, each on tokens (batch, 6, 16) with two heads of eight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, HEAD = 16, 2, 8

Cut = Callable[[Tensor], tuple[Tensor, ...]]
"""How the packed projection becomes q, k and v of shape (batch, heads, tokens, head width)."""


class Packed(nn.Module):
    """One projection taken apart by `cut`, fused attention, an output projection."""

    def __init__(self, cut: Cut, rows: int = 3 * WIDTH, bias: bool = True) -> None:
        super().__init__()
        self.cut = cut
        self.qkv = nn.Linear(WIDTH, rows, bias=bias)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self.qkv(x))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def timm(qkv: Tensor) -> tuple[Tensor, ...]:
    """Vision transformers: rows are (3, heads, width)."""
    batch, tokens, _ = qkv.shape
    return qkv.reshape(batch, tokens, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4).unbind(0)


def swin(qkv: Tensor) -> tuple[Tensor, ...]:
    """torchvision's Swin: the same, read by index."""
    batch, tokens, _ = qkv.shape
    whole = qkv.reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    return whole[0], whole[1], whole[2]


def interleaved(qkv: Tensor) -> tuple[Tensor, ...]:
    """BLOOM: rows are (heads, 3, width)."""
    batch, tokens, _ = qkv.shape
    whole = qkv.view(batch, tokens, HEADS, 3, HEAD)
    return tuple(whole[..., place, :].transpose(1, 2) for place in range(3))


def grouped(qkv: Tensor) -> tuple[Tensor, ...]:
    """Falcon, MPT and others: query heads, then key heads, then value heads."""
    parts = qkv.view(qkv.shape[0], qkv.shape[1], 3 * HEADS, HEAD).split([HEADS, HEADS, HEADS], dim=2)
    return tuple(part.transpose(1, 2) for part in parts)


def first_and_rest(qkv: Tensor) -> tuple[Tensor, ...]:
    """The query by index, key and value by a slice that is taken apart itself."""
    whole = qkv.unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
    key, value = whole[1:].unbind(0)
    return whole[0], key, value


def chunked(qkv: Tensor) -> tuple[Tensor, ...]:
    """GPT-2: thirds of the width, each taken apart into heads."""
    return tuple(part.view(*part.shape[:2], HEADS, HEAD).transpose(1, 2) for part in qkv.chunk(3, dim=-1))


class Torch(nn.Module):
    """PyTorch's own attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Matrix(nn.Module):
    """A matrix product with the weight stored as (inputs, outputs), as transformers' Conv1D has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(WIDTH, 3 * WIDTH)),
            nn.Parameter(torch.randn(3 * WIDTH)),
        )
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = torch.addmm(self.bias, x.view(-1, width), self.weight).view(batch, tokens, 3 * WIDTH)
        y = functional.scaled_dot_product_attention(*timm(qkv))
        return self.out(y.transpose(1, 2).flatten(2))


class Convolved(nn.Module):
    """A 1x1 convolution makes query, key and value of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv1d(WIDTH, 3 * WIDTH, 1)
        self.out = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        batch, _, tokens = x.shape
        q, k, v = self.qkv(x).view(batch, 3, HEADS, HEAD, tokens).unbind(1)
        y = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.out(y.reshape(batch, WIDTH, tokens)).transpose(1, 2)


class PartlyBiased(nn.Module):
    """BEiT: query and value have a bias, the key has none; the packed bias is put together on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("k_bias", torch.zeros(WIDTH))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        y = functional.scaled_dot_product_attention(*timm(functional.linear(x, self.qkv.weight, bias)))
        return self.out(y.transpose(1, 2).flatten(2))


class Memory(nn.Module):
    """Key and value packed, of a memory; the query has a projection of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, HEADS, HEAD).transpose(1, 2)
        kv = self.kv(x).view(batch, tokens, 2, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, kv[0], kv[1])
        return self.out(y.transpose(1, 2).flatten(2))


class Twice(nn.Module):
    """One attention layer called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Packed(timm)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.layer(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: Packed(timm),
    "no_bias": lambda: Packed(timm, bias=False),
    "swin": lambda: Packed(swin),
    "interleaved": lambda: Packed(interleaved),
    "grouped": lambda: Packed(grouped),
    "torch": Torch,
    "matrix": Matrix,
    "convolved": Convolved,
    "partly_biased": PartlyBiased,
    "memory": Memory,
    "twice": Twice,
}
