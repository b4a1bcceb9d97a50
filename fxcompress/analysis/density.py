"""How many of the stored weights are not zero: counted on the tensors, not read off a plan."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import torch

from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.ops.consumption import consumed

_GROUPS = (4, 8)
_FEWEST = 8
"""Groups that a tensor must have for its zeros to be a pattern and no accident."""


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


def patterns(program: Program) -> dict[str, tuple[int, int]]:
    """By name, N and M of the weights of which, of every M along what is summed over, at most N are not zero.

    Only patterns that halve the weights count: N is at most M / 2.
    """
    found = {}
    for node in walk.parameter_nodes(program):
        tensor = walk.tensor(program, node).detach()
        dims = {
            operand.dim % tensor.dim()
            for reader in node.users
            for operand in consumed(reader)
            if operand.node is node
        }
        if len(dims) == 1 and 2 * int(tensor.count_nonzero()) <= tensor.numel():
            pattern = _pattern(tensor.movedim(min(dims), -1))
            if pattern is not None:
                found[str(node.target)] = pattern
    return found


def _pattern(tensor: torch.Tensor) -> tuple[int, int] | None:
    for group in _GROUPS:
        if tensor.shape[-1] % group == 0 and tensor.numel() >= group * _FEWEST:
            most = int((tensor.reshape(-1, group) != 0).sum(1).max())
            if 2 * most <= group:
                return most, group
    return None


def gzip_bytes(data: bytes) -> int:
    """What a file takes after gzip: where zeros save something."""
    return len(gzip.compress(data, compresslevel=6, mtime=0))
