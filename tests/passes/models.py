"""Small models in which a pass finds, or must decline, its pattern; parameters and statistics are random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxcompress.graph.program import Program
from tests.architectures.randomise import randomise


class Chain(nn.Module):
    """Layers in a row under single letters, so that golden text stays short."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Apply(nn.Module):
    """A model of parameters and one function of them and the input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], object], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_parameter(name, nn.Parameter(part))

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


@dataclass(frozen=True)
class Case:
    """A model that a pass applies to, with the shape of its input."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def model(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, every parameter and statistic away from its start value."""
        torch.manual_seed(seed)
        return randomise(self.build(), seed, (torch.randn(4, *self.shape[1:]),))

    def example(self, seed: int = 0) -> Tensor:
        return torch.randn(*self.shape, generator=torch.Generator().manual_seed(seed))


def operators(program: Program) -> list[str]:
    """The operators of a program in order, by their short names."""
    return [
        str(node.target).removeprefix("aten.") for node in program.graph.nodes if node.op == "call_function"
    ]


def assert_same_function(before: Program, after: Program, tolerance: float = 1e-12) -> None:
    """Both compute the same, relative to the largest output, on the example and on what is far from it.

    For a tolerance like this both programs are in float64, the pass included: rounding to float32 would cost
    1e-7.
    """
    for scale in (1.0, 50.0):
        inputs = [x * scale if x.is_floating_point() else x for x in before.flat_example()]
        with torch.no_grad():
            expected, found = tree_leaves(before.module(*inputs)), tree_leaves(after.module(*inputs))
        assert len(expected) == len(found)
        for left, right in zip(expected, found, strict=True):
            assert left.shape == right.shape
            assert left.dtype == right.dtype
            assert float(left.abs().max()) > 0
            assert float((left - right).abs().max()) <= tolerance * float(left.abs().max())
