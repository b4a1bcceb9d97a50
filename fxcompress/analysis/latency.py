"""Milliseconds as a function of widths: kernel times measured on this machine, summed over a program.

A kernel's time is a staircase: channels are processed in blocks, and 40 of them cost what 48 do. It is
measured at a few widths on the edges of the stairs, only where a plan asks, and interpolated between them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fxcompress.analysis.groups import Analysis
from fxcompress.analysis.kernels import Template, factors, templates
from fxcompress.axes.expression import Axis, Concat, Dim, find, leaves
from fxcompress.axes.positions import width
from fxcompress.errors import CompressError
from fxcompress.graph import walk
from fxcompress.runtime.kernel_models import Kernel
from fxcompress.runtime.kernel_times import KernelTimes

Widths = Mapping[Axis, int]

KNOTS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Where a kernel is measured, as shares of a full width; each is moved up to the next edge of the stairs."""


@dataclass(frozen=True)
class Term:
    """What one operator costs: the axes that its time depends on, and milliseconds at widths."""

    axes: tuple[Axis, ...]
    at: Callable[[Widths], float]


@dataclass(frozen=True)
class LatencyPrice:
    """Milliseconds of a whole program, `scale * (constant + terms)`.

    Args:
        rest: the kernels that no width changes, and what is not listed.
        terms: the operators whose time follows widths.
        scale: from kernel times to the whole model's.
    """

    rest: float
    kernels: tuple[Term, ...]
    scale: float = 1.0

    @property
    def constant(self) -> float:
        return self.scale * self.rest

    @property
    def terms(self) -> tuple[Term, ...]:
        """The varying terms in milliseconds of the whole model."""
        return tuple(Term(term.axes, _times(self.scale, term.at)) for term in self.kernels)

    def at(self, widths: Widths) -> float:
        """Predicted milliseconds per call; axes that are not named keep their width."""
        return self.scale * (self.rest + math.fsum(term.at(widths) for term in self.kernels))

    def calibrated(self, kernels: float, measured: float) -> LatencyPrice:
        """The price that is right about the original.

        Args:
            kernels: milliseconds of all kernels of the original in a profile of the whole model; what the
                terms do not explain of them becomes the constant.
            measured: milliseconds of one call of the original.
        """
        listed = math.fsum(term.at({}) for term in self.kernels)
        rest = max(0.0, kernels - listed)
        return replace(self, rest=rest, scale=measured / (rest + listed))


def _times(scale: float, at: Callable[[Widths], float]) -> Callable[[Widths], float]:
    return lambda widths: scale * at(widths)


def latency_price(analysis: Analysis, times: KernelTimes, block: int, batch: int = 1) -> LatencyPrice:
    """The price of a program in milliseconds; kernels are measured as `at` asks for them.

    Args:
        analysis: the program and its axes.
        times: measures and remembers.
        block: the target's channel block, which is where stairs have their edges.
        batch: samples per call.
    """
    fixed = dict.fromkeys(_batch_axes(analysis), batch)
    rest, terms = 0.0, []
    for node in analysis.program.graph.nodes:
        for template in templates(analysis.space, node):
            kernel = _Varying(template, times, block, fixed)
            try:
                full = kernel.at({})
            except CompressError:
                continue  # the runtime has no such kernel: part of the constant
            if kernel.axes:
                terms.append(Term(kernel.axes, kernel.at))
            else:
                rest += full
    return LatencyPrice(rest, tuple(terms))


def _batch_axes(analysis: Analysis) -> list[Axis]:
    """The leading dimension of the inputs, where a call may have any number of samples."""
    found = []
    for node in walk.placeholders(analysis.program):
        if walk.is_tensor(node) and walk.hint_shape(node) and walk.is_symbolic(node, 0):
            dim = find(analysis.space.of(node)[0])
            if isinstance(dim, Axis):
                found.append(dim)
    return list(dict.fromkeys(found))


@dataclass
class _Varying:
    """One kernel at any widths: a grid of measured times, filled where it is asked for."""

    template: Template
    times: KernelTimes
    block: int
    fixed: Widths
    coordinates: list[Dim] = field(default_factory=list)
    knots: list[tuple[int, ...]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        entries = [dim for shape in (*self.template.inputs, *self.template.stored) for dim in shape]
        seen: dict[object, int] = {}
        self._place: dict[object, int] = {}
        for dim in entries:
            for factor in factors(dim):
                if _identity(factor) not in seen and _varies(factor):
                    seen[_identity(factor)] = len(self.coordinates)
                    self.coordinates.append(factor)
        self._place = seen
        self.axes = tuple(
            dict.fromkeys(axis for dim in self.coordinates for axis in leaves(dim) if not axis.frozen)
        )
        self.steps = [self._step(dim) for dim in self.coordinates]
        self.knots = [_knots(dim.size, step) for dim, step in zip(self.coordinates, self.steps, strict=True)]
        self._corners: dict[tuple[int, ...], float] = {}
        self._answers: dict[tuple[int, ...], float] = {}

    def at(self, widths: Widths) -> float:
        """Milliseconds at widths, interpolated on the grid."""
        sizes = tuple(width(dim, widths) for dim in self.coordinates)
        if sizes not in self._answers:
            self._answers[sizes] = self._interpolated(sizes)
        return self._answers[sizes]

    def _interpolated(self, sizes: Sequence[int]) -> float:
        """Linear in each coordinate between the two knots around the next edge of its stairs."""
        around = []
        for size, step, knots in zip(sizes, self.steps, self.knots, strict=True):
            edge = min(knots[-1], -(-size // step) * step)
            above = next(place for place, knot in enumerate(knots) if knot >= edge)
            if knots[above] == edge or above == 0:
                around.append([(knots[above], 1.0)])
            else:
                low, high = knots[above - 1], knots[above]
                share = (edge - low) / (high - low)
                around.append([(low, 1 - share), (high, share)])
        return math.fsum(
            math.prod(weight for _, weight in corner) * self._measured(tuple(knot for knot, _ in corner))
            for corner in itertools.product(*around)
        )

    def _measured(self, sizes: tuple[int, ...]) -> float:
        if sizes not in self._corners:
            found = self.times.ms(self._kernel(sizes))
            if found is None:
                full = self._corners.get(tuple(knots[-1] for knots in self.knots), 0.0)
                found = full * math.prod(
                    size / knots[-1] for size, knots in zip(sizes, self.knots, strict=True)
                )
            self._corners[sizes] = found
        return self._corners[sizes]

    def _kernel(self, sizes: Sequence[int]) -> Kernel:
        def size_of(dim: Dim) -> int:
            return math.prod(
                sizes[place]
                if (place := self._place.get(_identity(factor))) is not None
                else width(factor, self.fixed)
                for factor in factors(dim)
            )

        template = self.template
        attributes = dict(template.attributes)
        if template.groups:
            attributes["group"] = math.prod(size_of(dim) for dim in template.groups)
        return Kernel(
            template.operator,
            tuple(tuple(map(size_of, shape)) for shape in template.inputs),
            tuple(tuple(map(size_of, shape)) for shape in template.stored),
            tuple(sorted(attributes.items())),
        )

    def _step(self, coordinate: Dim) -> int:
        """Stairs are as wide as the block in the dimensions of what is stored, if a factor is not many."""
        wanted = _identity(coordinate)
        steps = [
            self.block // math.gcd(self.block, dim.size // coordinate.size)
            for shape in self.template.stored
            for dim in shape
            if any(_identity(factor) == wanted for factor in factors(dim))
        ]
        return min(coordinate.size, max(steps, default=1))


def _varies(dim: Dim) -> bool:
    return any(not axis.frozen for axis in leaves(dim))


def _identity(dim: Dim) -> object:
    """Equal for expressions that always have the same width."""
    dim = find(dim)
    if isinstance(dim, Axis):
        return dim
    children = dim.parts if isinstance(dim, Concat) else dim.factors
    return (type(dim).__name__, *(_identity(child) for child in children))


def _knots(size: int, step: int) -> tuple[int, ...]:
    """The widths to measure at, ascending: the first edge, and `KNOTS` moved up to edges."""
    edges = {min(size, max(step, math.ceil(size * share / step) * step)) for share in KNOTS}
    return tuple(sorted({min(step, size), *edges}))
