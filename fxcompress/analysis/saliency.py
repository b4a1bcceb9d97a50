"""Saliency of the indices of every group, gathered over all that they touch.

What is stored counts through the group's members, what flows through the activations that contractions read:
in both, the algebra says which positions go with which index. Running statistics count in neither.

A kind that says nothing about a group (no batch norm in it, no contraction that reads it) leaves it to L2, on
the scale of the groups that it does speak about; `unspoken` lists such groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch

from fxcompress.analysis.elimination import eliminated
from fxcompress.analysis.evidence import Array, Evidence, Site, needs_of
from fxcompress.analysis.groups import Analysis, Group, Member
from fxcompress.analysis.reading import Readers, finite, slice_energy
from fxcompress.axes.positions import occurrences
from fxcompress.errors import InputError
from fxcompress.graph import walk
from fxcompress.numerics.saliency import (
    STORED_KINDS,
    Labels,
    Saliency,
    Scores,
    absolute_sums,
    normalized,
    pooled,
    squared_distances,
    squared_sums,
)
from fxcompress.ops.arguments import arguments
from fxcompress.ops.feeding import Feed

_NORMS = frozenset({torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default})
Slices = Iterator[tuple[Labels, Scores]]


def score(analysis: Analysis, saliency: Saliency, evidence: Evidence | None = None) -> dict[str, Scores]:
    """By group name, the saliency of every index, never negative; shape `[group.size]`.

    Raises:
        InputError: the saliency needs evidence, or a parameter or what was gathered holds a NaN.
    """
    raw = _raw(analysis, saliency, evidence)
    spoken = {name: normalized(found, saliency.normalize) for name, found in raw.items() if found is not None}
    if saliency.normalize == "macs":
        spoken = {name: found / _saved(analysis, analysis.group(name)) for name, found in spoken.items()}
    level = float(np.mean([found.mean() for found in spoken.values()])) if spoken else 1.0
    scores = {}
    for group in analysis.groups:
        found = spoken.get(group.name)
        scores[group.name] = level * _relative_l2(analysis, group) if found is None else found
    lowest = min((float(found.min()) for found in scores.values()), default=0.0)
    return {name: found - lowest for name, found in scores.items()} if lowest < 0 else scores


def _saved(analysis: Analysis, group: Group) -> float:
    """The share of the MACs that one index of a group saves when it goes alone."""
    macs = analysis.price.macs
    full = macs.at({})
    saved = full - macs.at({group.axis: group.size - 1})
    return saved / full if saved > 0 else 1.0


def unspoken(analysis: Analysis, saliency: Saliency) -> tuple[str, ...]:
    """The names of the groups that the saliency says nothing about, and L2 ranks instead."""
    reading = _Reading(analysis, saliency, Evidence(0))
    return tuple(group.name for group in analysis.groups if not reading.speaks_of(group))


def _raw(analysis: Analysis, saliency: Saliency, evidence: Evidence | None) -> dict[str, Scores | None]:
    """By group, one number per index; None where the kind has none."""
    if needs_of(saliency) and evidence is None:
        raise InputError(
            f"saliency {saliency.kind!r} is measured on data, and there is none",
            hint="pass calibration=[batch, ...], some dozens of typical inputs; 'l2' needs none",
        )
    reading = _Reading(analysis, saliency, evidence or Evidence(0))
    return {group.name: reading.of(group) for group in analysis.groups}


class _Reading:
    """One saliency of one program; keeps what several groups read."""

    def __init__(self, analysis: Analysis, saliency: Saliency, evidence: Evidence) -> None:
        self.analysis, self.saliency, self.evidence = analysis, saliency, evidence
        self.sums: dict[tuple[str, int], Scores] = {}
        self.generator = np.random.default_rng(saliency.seed)

    def of(self, group: Group) -> Scores | None:
        """The numbers of a group's indices before normalization."""
        kind = self.saliency.kind
        if kind == "random":
            return self.generator.random(group.size)
        if kind == "elimination":
            reads = self.readers.of(group.axis)
            return eliminated(self.analysis.program, group.size, reads, self.evidence)
        slices = list(self._slices(group))
        if not slices:
            return None
        found = pooled(group.size, slices, self.saliency.reduce)
        return np.sqrt(found) if kind == "l2" else found

    def speaks_of(self, group: Group) -> bool:
        """Whether the kind has a number for every index of a group."""
        if self.saliency.kind == "batch_norm":
            return any(member.tensor in self.scales for member in group.members)
        if self.saliency.kind in STORED_KINDS or self.saliency.kind == "obd":
            return True
        return next(self.readers.of(group.axis), None) is not None

    def _slices(self, group: Group) -> Slices:
        kind = self.saliency.kind
        if kind in ("l1", "l2"):
            yield from self._stored(group, absolute_sums if kind == "l1" else squared_sums)
        elif kind == "geometric_median":
            yield from self._distances(group)
        elif kind == "batch_norm":
            members = [member for member in group.members if member.tensor in self.scales]
            yield from self._stored(group, absolute_sums, members)
        elif kind == "obd":
            yield from self._stored(group, squared_sums, weighted=True)
        else:
            yield from self._flowing(group)

    def _stored(
        self,
        group: Group,
        sums: Callable[[Array, int], Scores],
        members: list[Member] | None = None,
        weighted: bool = False,
    ) -> Slices:
        """Labels and sums over slices of every trainable member."""
        for member in group.members if members is None else members:
            tensor = walk.tensor(self.analysis.program, member.tensor)
            if not isinstance(tensor, torch.nn.Parameter):
                continue
            key = (member.tensor, member.dim)
            if key not in self.sums:
                values = tensor.detach().float().numpy()
                if weighted:
                    values = values * np.sqrt(self.evidence.squared_gradients.get(member.tensor, 0.0))
                self.sums[key] = finite(member.tensor, sums(values, member.dim))
            for labels in occurrences(member.expression, group.axis):
                yield labels, self.sums[key]

    def _distances(self, group: Group) -> Slices:
        """Per member, the distances of every index to all others, summed."""
        for member in group.members:
            tensor = walk.tensor(self.analysis.program, member.tensor)
            if not isinstance(tensor, torch.nn.Parameter):
                continue
            values = finite(member.tensor, tensor.detach().double().movedim(member.dim, 0).numpy())
            for labels in occurrences(member.expression, group.axis):
                inside = np.flatnonzero(labels >= 0)
                order = inside[np.argsort(labels[inside], kind="stable")]
                rows = values[order].reshape(group.size, -1)
                yield np.arange(group.size), np.sqrt(squared_distances(rows)).sum(1)

    def _flowing(self, group: Group) -> Slices:
        """Labels and numbers of what contractions read of a group; an activation counts once."""
        lost = self.saliency.kind == "reconstruction"
        first: dict[Site, Feed] = {}
        for feed, width, labels in self.readers.of(group.axis):
            if lost:
                energy = self.evidence.moments[feed.source.name, feed.dim].square
                yield labels, energy * slice_energy(self.analysis.program, feed, width, self.evidence)
            elif first.setdefault((feed.source.name, feed.dim), feed) is feed:
                yield labels, self._seen((feed.source.name, feed.dim), width)

    def _seen(self, site: Site, width: int) -> Scores:
        kind = self.saliency.kind
        if kind in ("taylor", "fisher"):
            gates = self.evidence.gates.get(site)
            return np.zeros(width) if gates is None else gates.absolute if kind == "taylor" else gates.square
        moments = self.evidence.moments[site]
        if kind == "variance":
            return np.maximum(moments.square - moments.mean**2, 0.0)
        return moments.absolute if kind == "activation" else moments.active

    @cached_property
    def readers(self) -> Readers:
        return Readers(self.analysis)

    @cached_property
    def scales(self) -> frozenset[str]:
        """The names of the weights of batch norms."""
        weights = [
            arguments(node)["weight"] for node in self.analysis.program.graph.nodes if node.target in _NORMS
        ]
        return frozenset(str(node.target) for node in weights if node is not None and node.op == "get_attr")


def _relative_l2(analysis: Analysis, group: Group) -> Scores:
    found = _Reading(analysis, Saliency("l2"), Evidence(0)).of(group)
    return normalized(np.zeros(group.size) if found is None else found, "mean")
