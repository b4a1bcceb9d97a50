"""Small modules that are as nasty as we can make them, each one idea: how they are written down.

An idea is a function `(m, *inputs) -> outputs` whose docstring says what is nasty; `m` holds the parts
(layers, parameters, buffers) that the table's `parts` makes. `sizes` are the sizes of the groups that
dependency analysis must find, ascending: one that is missing is a needless freeze, which no oracle can see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.randomise import randomise

Forward = Callable[..., Any]
Parts = Callable[[], Mapping[str, Any]]


class Idea(nn.Module):
    """A forward function with its parts: layers, parameters and buffers."""

    def __init__(self, function: Forward, parts: Mapping[str, Any]) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module) or not isinstance(part, Tensor):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


@dataclass(frozen=True)
class Nasty:
    """One idea.

    Args:
        function: the forward pass; its name and docstring are those of the idea.
        parts: makes what `m` holds.
        shapes: of the inputs, without the batch; a `torch.Tensor` stands for itself (ids, with its batch).
        sizes: group sizes, ascending.
        unknown: operators without a rule that it has on purpose, by the names in the reasons.
    """

    function: Forward
    parts: Parts
    shapes: tuple[Any, ...]
    sizes: tuple[int, ...]
    unknown: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__

    def example(self, batch: int = 2, *, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.arange(batch)
        return tuple(
            shape[rows % len(shape)]
            if isinstance(shape, Tensor)
            else torch.randn(batch, *shape, generator=generator)
            for shape in self.shapes
        )

    def model(self, seed: int = 0) -> nn.Module:
        """In eval mode with every parameter drawn from `seed`; the global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return randomise(Idea(self.function, self.parts()), seed, self.example(4, seed=seed + 1))


class Ideas(list[Nasty]):
    """A table of ideas; `@table.idea(..)` adds a function to it."""

    def idea(
        self,
        parts: Parts,
        *shapes: Any,
        sizes: tuple[int, ...],
        unknown: tuple[str, ...] = (),
    ) -> Callable[[Forward], Forward]:
        def add(function: Forward) -> Forward:
            self.append(Nasty(function, parts, shapes, sizes, unknown))
            return function

        return add
