"""Symmetric quantization of a matrix in blocks: one scale for every few weights of a row.

A row of `K` weights is cut into blocks of `block`; a block has one scale, and its weights are integers
`-2**(bits-1) .. 2**(bits-1)-1` without zero point. Four bits at 32 weights a block are 5 bits a weight with
the scales (float32), against 32.

Four bits are so few that the largest weight of a block is not the best end of its range: of several shares
of it the scale with the smallest squared error is taken (the search of OMSE, Choukroun et al. 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARES = tuple(1.0 - 0.05 * step for step in range(9))
"""Shares of a block's largest magnitude that may become the end of its range."""


def bounds(bits: int) -> tuple[int, int]:
    """The smallest and largest integer of so many bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def block_scales(weight: Tensor, block: int, bits: int) -> Tensor:
    """The scale of each block, float32 `[rows, blocks]`, for `weight` `[rows, K]`; `block` divides `K`.

    The largest magnitude of a block becomes the *lowest* integer, of which there is one more, so a scale may
    be negative. A block of zeros has scale 1.
    """
    blocks = weight.detach().to(torch.float32).unflatten(1, (-1, block))
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    low = bounds(bits)[0]
    best = torch.where(largest == 0, 1.0, largest / low)
    error = _error(blocks, best, bits)
    if bits <= 4:
        for share in SHARES[1:]:
            scale = torch.where(largest == 0, 1.0, share * largest / low)
            found = _error(blocks, scale, bits)
            best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    return best.squeeze(2)


def quantize_blocks(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Weights `[rows, K]` to int8, each block in units of its scale `[rows, blocks]`."""
    blocks = weight.detach().to(torch.float32).unflatten(1, (scales.shape[1], -1))
    return _rounded(blocks, scales.unsqueeze(2), bits).flatten(1).to(torch.int8)


def dequantize_blocks(whole: Tensor, scales: Tensor) -> Tensor:
    """What integers `[rows, K]` stand for, in float32."""
    blocks = whole.to(torch.float32).unflatten(1, (scales.shape[1], -1))
    return (blocks * scales.unsqueeze(2)).flatten(1)


def _rounded(blocks: Tensor, scales: Tensor, bits: int) -> Tensor:
    return torch.round(blocks / scales).clamp(*bounds(bits))


def _error(blocks: Tensor, scales: Tensor, bits: int) -> Tensor:
    return (_rounded(blocks, scales, bits) * scales - blocks).square().sum(2, keepdim=True)
