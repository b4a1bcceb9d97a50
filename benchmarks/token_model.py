"""A small transformer on the digits, a few channels of whose norms are far wider than the others.

Large transformers grow such channels by themselves (Dettmers et al., "LLM.int8()", 2022). Here they are
made: a norm's weight is multiplied, and the weights that read it divided, by the same powers of two, so that
the network computes the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.digits_training import Training, fit
from examples.digits import CLASSES, Digits

WIDTH, HEADS, PATCH = 32, 4, 4
OUTLIERS, FACTOR = 3, 64.0
"""How many channels of a norm are widened, and by how much."""


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, WIDTH) to the same."""
        y = self.norm1(x)
        heads = [
            layer(y).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        x = x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class TokenNet(nn.Module):
    """Patches of 4 x 4 pixels, two blocks, the mean of the tokens, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(torch.randn(1, 64, WIDTH) * 0.1)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 32, 32) to logits of shape (N, 10)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def trained(data: Digits, *, seed: int = 0) -> TokenNet:
    """The network in evaluation mode, some seconds of training later."""
    torch.manual_seed(seed)
    return fit(TokenNet(), data, Training(epochs=15, rate=4e-3, reach=1), seed)


@torch.no_grad()
def widen(model: TokenNet, *, seed: int = 0) -> TokenNet:
    """Widen a few channels of every block's norms in place; every output stays what it was, to the bit."""
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        assert isinstance(block, Block)
        for norm, readers in (
            (block.norm1, (block.query, block.key, block.value)),
            (block.norm2, (block.up,)),
        ):
            chosen = torch.randperm(WIDTH, generator=generator)[:OUTLIERS]
            norm.weight[chosen] *= FACTOR
            norm.bias[chosen] *= FACTOR
            for reader in readers:
                reader.weight[:, chosen] /= FACTOR
    return model
