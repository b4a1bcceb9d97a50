"""What the weights of a pruned program would have to give: moments of inputs and of what outputs lack.

The original and the pruned program run side by side, step by step. At a layer the regressors are what the
*pruned* program (its earlier layers already corrected) hands to it, the residual is what its output lacks of
the *original's* on the channels that stay: the asymmetric reconstruction of He et al. (2017). Moments are
sums, whatever the number of rows; rows are sampled where a layer has many output positions. What is held are
the values at one cut of the two programs, of at most as many samples as the memory allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis.groups import Analysis
from fxcompress.analysis.output_error import gap, variance
from fxcompress.analysis.refit import FAINT, Site
from fxcompress.axes.expression import Axis
from fxcompress.axes.positions import Indices, kept
from fxcompress.graph import walk
from fxcompress.graph.program import Program
from fxcompress.graph.samples import pieces, sample_count, split
from fxcompress.graph.stepwise import Stepwise, Values
from fxcompress.numerics.least_squares import Moments

CHUNK = 64
"""Samples that run at once."""

PLACES = 64
"""Output positions of a layer that are read per sample; they are drawn anew for every chunk."""

JUDGED = 5
"""Every so many-th chunk is kept back from the fit, to judge it, where there are few samples."""

ENOUGH = 32
"""Samples from which the error that is reported is that of samples which chose nothing either."""

PARTS = 8
"""Then one chunk of so many chooses the damping, one gives the reported error; the other six are fitted."""


@dataclass
class Chunk:
    """Some samples, where the two programs are with them.

    No fit sees those that are marked: `judge` chooses among fits, `report` gives the model's error.
    With few samples the same ones serve for both.
    """

    original: Values
    pruned: Values
    judge: bool
    report: bool
    size: int


class SideBySide:
    """Two programs on the same samples, advanced together layer by layer.

    Without an `analysis` of the original and `indices` that stay, both have the same channels.
    """

    def __init__(
        self,
        original: Program,
        pruned: Program,
        analysis: Analysis | None = None,
        indices: Mapping[Axis, Indices] | None = None,
    ) -> None:
        self.original, self.pruned = Stepwise(original), Stepwise(pruned)
        self.space, self.indices = None if analysis is None else analysis.space, indices or {}
        self.chunks: list[Chunk] = []
        self.variance = 0.0
        """Of the original's outputs, all entries of one sample together."""
        self.apart = False
        """Whether the samples that choose are others than those of which the error is reported."""
        self._at = [0, 0]

    def load(self, batches: Iterable[Any], memory: int) -> int:
        """Take samples while the values of both runs fit in `memory` bytes; returns how many were taken.

        A sample that comes again is left out: what is fitted on it cannot be judged on it.
        """
        program = self.original.program
        example = max(sample_count(program, program.flat_example()), 1)
        each = (self.original.peak_bytes() + self.pruned.peak_bytes()) // example + 1
        room, taken, held = max(memory // each, 2), 0, []
        for piece in pieces(program, batches, min(CHUNK, room)):
            held.append(piece)
            taken += sample_count(program, piece)
            if taken >= room:
                break
        parts = PARTS if taken >= ENOUGH else JUDGED
        if len(held) < parts:
            size = max(-(-taken // parts), 1)
            held = [part for piece in held for part in split(program, piece, size)]
        self.apart = taken >= ENOUGH and len(held) >= PARTS
        for number, piece in enumerate(held):
            begun = self.original.begin(piece), self.pruned.begin(piece)
            self.chunks.append(Chunk(*begun, *self._kept_back(number), sample_count(program, piece)))
        self.variance = variance(self._ended(self.original, chunk.original, 0) for chunk in self.chunks)
        return taken

    def _kept_back(self, number: int) -> tuple[bool, bool]:
        """Whether a chunk chooses, and whether the error is its; not the last of eight: it may be small."""
        if self.apart:
            return number % PARTS == PARTS - 2, number % PARTS == PARTS // 2 - 1
        return (number % JUDGED == 1,) * 2

    def go(self, site: Site) -> None:
        """Advance both programs, on all samples, to right before a layer."""
        self._advance(self.original.place[site.twin], self.pruned.place[site.node])

    def finish(self) -> None:
        """Advance both programs to their ends."""
        self._advance(len(self.original.nodes), len(self.pruned.nodes))

    def _advance(self, original: int, pruned: int) -> None:
        for chunk in self.chunks:
            self.original.advance(chunk.original, self._at[0], original)
            self.pruned.advance(chunk.pruned, self._at[1], pruned)
        self._at = [original, pruned]

    @property
    def judged(self) -> int:
        """Samples that no fit sees, and by which fits are chosen."""
        return sum(chunk.size for chunk in self.chunks if chunk.judge)

    @property
    def reported(self) -> int:
        """Samples that no fit sees, and whose error is that of the whole model."""
        return sum(chunk.size for chunk in self.chunks if chunk.report)

    def output_error(self) -> float:
        """The squared difference of the outputs as a share of their variance, on samples that no fit sees.

        The variance is that of all samples: an outlier among them makes every share small, but not one share
        smaller than another.
        """
        difference = 0.0
        for chunk in self.chunks:
            if chunk.report:
                wanted = self._ended(self.original, chunk.original, 0)
                difference += gap(wanted, self._ended(self.pruned, chunk.pruned, 1))
        mean = difference / max(self.reported, 1)
        return mean / self.variance if self.variance else mean

    def _ended(self, run: Stepwise, values: Values, which: int) -> list[Tensor]:
        trial = dict(values)
        run.advance(trial, self._at[which], len(run.nodes))
        return run.outputs(trial)

    def moments(self, site: Site) -> tuple[Moments, Moments]:
        """The moments of a layer that both programs stand before: to fit, and to judge the fit by."""
        weight = walk.tensor(self.pruned.program, site.form.weight).detach()
        shape = site.form.matrix(weight).shape
        fitted, judged = Moments.empty(*shape), Moments.empty(*shape)
        for number, chunk in enumerate(self.chunks):
            if chunk.report and not chunk.judge:
                continue
            x, lacking = chunk.pruned[site.form.source], self._lacking(site, chunk)
            places = places_of(site.form.places(lacking), number)
            moments = judged if chunk.judge else fitted
            moments.update(site.form.rows(x, places), site.form.picked(lacking, places))
        return fitted, judged

    def _lacking(self, site: Site, chunk: Chunk) -> Tensor:
        """What the layer's output would have to gain for its target to be the original's."""
        wanted = self.kept(site.target_twin, self._ahead(self.original, chunk.original, 0, site.target_twin))
        lacking = wanted - self._ahead(self.pruned, chunk.pruned, 1, site.target)
        faint = site.scale.abs() <= FAINT * site.scale.abs().max()
        inverse = torch.where(faint, 0.0, 1.0 / site.scale).to(lacking.dtype)
        shape = [1] * lacking.dim()
        shape[site.form.channels] = -1
        return lacking * inverse.reshape(shape)

    def _ahead(self, run: Stepwise, values: Values, which: int, node: Node) -> Tensor:
        """The value of a node at or after the cut, leaving the run where it is."""
        trial = dict(values)
        run.advance(trial, self._at[which], run.place[node])
        value: Tensor = run.call(trial, node)
        return value

    def kept(self, node: Node, value: Tensor) -> Tensor:
        """A value of the original on the positions that stay."""
        if self.space is None:
            return value
        for dim, expression in enumerate(self.space.of(node)):
            stay = torch.from_numpy(kept(expression, self.indices))
            if len(stay) < expression.size:
                value = value.index_select(dim, stay)
        return value


def places_of(count: int, seed: int) -> Tensor:
    """The output positions that are read, of `count`: all, or `PLACES` of them drawn by `seed`."""
    if count <= PLACES:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:PLACES].sort().values
