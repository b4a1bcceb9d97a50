"""How many of the stored weights are not zero: counted on the tensors, not read off a plan."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

from fxcompress.graph import walk
from fxcompress.graph.program import Program


@dataclass(frozen=True)
class Density:
    """One parameter: its number of weights, and how many are not zero."""

    name: str
    size: int
    nonzero: int

    @property
    def share(self) -> float:
        return self.nonzero / self.size if self.size else 1.0


def densities(program: Program) -> tuple[Density, ...]:
    """Every trainable parameter of a program, in graph order."""
    return tuple(
        Density(str(node.target), tensor.numel(), int(tensor.detach().count_nonzero()))
        for node in walk.parameter_nodes(program)
        for tensor in (walk.tensor(program, node),)
    )


def density(program: Program) -> float:
    """The share of all trainable weights that is not zero."""
    counted = densities(program)
    return sum(item.nonzero for item in counted) / max(1, sum(item.size for item in counted))


def gzip_bytes(data: bytes) -> int:
    """What a file takes after gzip: where zeros save something."""
    return len(gzip.compress(data, compresslevel=6, mtime=0))
