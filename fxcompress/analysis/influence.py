"""What a residual block contributes, measured on calibration data with that block skipped alone.

Two measures. `output`: how far the outputs move, `|y_without - y| / |y|` in the L2 norm over all batches and
floating outputs; it costs one run of the program per block and batch. `cosine`: one minus the mean cosine
between the block's identity and its sum (Men et al., "ShortGPT: Layers in Large Language Models are More
Redundant Than You Expect", 2024), per token over the last dimension for tensors of three dimensions, per
sample over all else for others; it costs one run per batch, and sees the block but not what follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from fxcompress.analysis.residual import Block
from fxcompress.errors import InputError
from fxcompress.graph.execute import Executor, run_flat
from fxcompress.graph.inputs import batches as flat_batches
from fxcompress.graph.program import Program

MEASURES = ("output", "cosine")
_TOKENS = 3
"""Dimensions of a tensor that holds tokens: batch, position, width."""


def influence(
    program: Program, blocks: Sequence[Block], batches: Iterable[Any], measure: str = "output"
) -> dict[str, float]:
    """By block name, how much the program misses the block; near 0 means that it can go.

    Args:
        program: in evaluation mode.
        blocks: of this program, see `analysis.residual`.
        batches: calibration data, read once; a batch is what the model's signature takes.
        measure: `"output"` or `"cosine"`.

    Raises:
        InputError: no batch, a batch that does not fit, another measure, or outputs that are all zero or no
            finite numbers.
    """
    if measure not in MEASURES:
        raise InputError(
            f"influence {measure!r} is not one of {', '.join(MEASURES)}", hint="output is default"
        )
    stream = flat_batches(program, batches)
    return _by_cosine(program, blocks, stream) if measure == "cosine" else _by_output(program, blocks, stream)


def _by_output(
    program: Program, blocks: Sequence[Block], batches: Iterable[Sequence[torch.Tensor]]
) -> dict[str, float]:
    runners = {block.name: SkippingExecutor(program, {block.name: block.identity}) for block in blocks}
    moved, total = dict.fromkeys(runners, 0.0), 0.0
    for batch in batches:
        wanted = run_flat(program, batch)
        total += _squares(wanted)
        for name, runner in runners.items():
            with torch.no_grad():
                found = runner.run_flat(batch)
            moved[name] += _squares([one - other for one, other in _floating(found, wanted)])
    if not 0 < total < float("inf"):
        raise InputError(
            f"the outputs on the calibration data have the squared norm {total}: influence has no measure",
            hint="pass batches for which the model gives finite numbers, not all zero",
        )
    return {name: (value / total) ** 0.5 for name, value in moved.items()}


def _floating(
    left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [pair for pair in zip(left, right, strict=True) if pair[0].is_floating_point()]


def _squares(values: Sequence[torch.Tensor]) -> float:
    return sum(float(value.double().square().sum()) for value in values if value.is_floating_point())


class SkippingExecutor(Executor):
    """Runs a program with the branch `f(x)` of chosen additions multiplied by zero.

    Args:
        program: the program with all its blocks.
        skipped: by name of the addition, the position of its identity.
    """

    def __init__(self, program: Program, skipped: Mapping[str, int]) -> None:
        super().__init__(program)
        self.skipped = skipped

    def run_node(self, n: Node) -> Any:
        if n.name not in self.skipped:
            return super().run_node(n)
        values = [self.env[term] for term in n.args[:2] if isinstance(term, Node)]
        branch = 1 - self.skipped[n.name]
        values[branch] = values[branch] * 0
        return self.after(n, values[0] + values[1])


def _by_cosine(
    program: Program, blocks: Sequence[Block], batches: Iterable[Sequence[torch.Tensor]]
) -> dict[str, float]:
    watcher = _Watcher(program, blocks)
    for batch in batches:
        with torch.no_grad():
            watcher.run_flat(batch)
    return {name: 1.0 - total / watcher.counts[name] for name, total in watcher.sums.items()}


class _Watcher(Executor):
    """Sums the cosines between what enters a block and what leaves it."""

    def __init__(self, program: Program, blocks: Sequence[Block]) -> None:
        super().__init__(program)
        self.identities = {block.name: block.identity for block in blocks}
        self.sums = dict.fromkeys(self.identities, 0.0)
        self.counts = dict.fromkeys(self.identities, 0)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.identities:
            origin = n.args[self.identities[n.name]]
            assert isinstance(origin, Node)
            cosines = _cosines(self.env[origin].double(), value.double())
            self.sums[n.name] += float(cosines.sum())
            self.counts[n.name] += cosines.numel()
        return value


def _cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Per token, or per sample where a tensor holds none; a vector is one sample."""
    if left.dim() < 2:
        left, right = left.reshape(1, -1), right.reshape(1, -1)
    if left.dim() == _TOKENS:
        return torch.nn.functional.cosine_similarity(left, right, dim=-1)
    return torch.nn.functional.cosine_similarity(left.flatten(1), right.flatten(1), dim=1)
