"""Which mixtures of float and int8 are worth trying: a few cuts over kernel times of this machine.

Prices are additive, and a network is not quite: where the sum says that two choices take about as long, only
timing both tells. So up to `MOST` cuts are handed on: the one that the prices call fastest, one that finds
conversions dearer (they also spoil what lies around them), and one that gives up a little time for accuracy.
The whole frontier goes along: `max_drop` walks it (`points`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxcompress.analysis.precision_prices import PrecisionPrices, precision_prices
from fxcompress.analysis.quantization_noise import operator_noise
from fxcompress.api.request import Request
from fxcompress.graph.program import Program
from fxcompress.numerics.ranges import Range
from fxcompress.pipeline import Journal
from fxcompress.plan.precision_cut import Mixture, cut, frontier, mixture
from fxcompress.plan.quantization import capable_operators
from fxcompress.plan.unbounded import unbounded
from fxcompress.runtime.kernel_times import KernelTimes

DEARER = 2.0
"""How many times as much a conversion costs in the second cut."""
PATIENCE = 1.1
"""How many times the fastest cut's time the more accurate one may take."""
MOST = 3
GAIN, FINER = 0.98, 0.7
"""A cut is tried whose predicted time or error is below this share of that of int8 wherever it can be; the
fastest is tried anyway where it is another choice (MobileNetV2: 0.1 % faster by the prices, which left three
convolutions in float, 3 % by the runtime's profile).
"""
MEASURING_SECONDS = 45.0
"""After this long, kernels that were not measured before count as free: see `KernelTimes`."""


@dataclass(frozen=True)
class Mix:
    """A choice of the operators in int8.

    Args:
        name: of the variant.
        operators: node names.
        mixture: what the prices say of it.
    """

    name: str
    operators: frozenset[str]
    mixture: Mixture


@dataclass(frozen=True)
class Mixes:
    """The choices to try, and what the prices say of float and of int8 wherever it can be.

    `everything` are the operators of the latter; `frontier` goes from the fastest cut to the most accurate.
    """

    found: tuple[Mix, ...]
    floats: Mixture
    full: Mixture
    notes: tuple[str, ...]
    prices: PrecisionPrices
    frontier: tuple[Mixture, ...]

    @property
    def everything(self) -> frozenset[str]:
        """The operators of int8 wherever it can be."""
        return self.prices.operators(self.full.integers)

    def points(self, errors: Mapping[str, float] | None = None) -> tuple[Mix, ...]:
        """The frontier, with other errors by operator where they are given."""
        found = self.frontier if errors is None else frontier(self.prices.with_errors(errors))
        able = len(self.everything)
        choices = ((self.prices.operators(item.integers), item) for item in found)
        return tuple(Mix(f"int8 cut, {len(one)} of {able} operators", one, item) for one, item in choices)


def mixes(
    request: Request,
    prepared: Program,
    ranges: Mapping[str, Range],
    sample: Sequence[Tensor],
    journal: Journal,
) -> Mixes:
    """Price every operator and cut.

    Args:
        request: what was asked for.
        prepared: the float program.
        ranges: of every tensor that may be quantized.
        sample: flat inputs, to see how much noise int8 brings.
        journal: the log.
    """
    masks = set(unbounded(prepared.graph.nodes, ranges))
    able = capable_operators(prepared, request.target, request.quantize)
    capable = {name: kernel for name, kernel in able.items() if name not in masks}
    times = KernelTimes(threads=request.threads, seconds=MEASURING_SECONDS)
    try:
        with journal.step("measure-kernels"):
            errors = operator_noise(prepared, capable, ranges, sample)
            prices = precision_prices(prepared, capable, times, request.batch, errors)
    finally:
        times.save()
    with journal.step("cut-precision"):
        return _chosen(prices, (*times.notes, *prices.notes[:3]))


def _chosen(prices: PrecisionPrices, notes: tuple[str, ...]) -> Mixes:
    fastest = mixture(prices, cut(prices))
    fewer = mixture(prices, cut(prices.scaled(DEARER)))
    curve = frontier(prices)
    patient = [item for item in curve if item.ms <= PATIENCE * fastest.ms]
    finer = min(patient, key=lambda item: item.error, default=fastest)
    everything = {vertex.name for vertex in prices.vertices if vertex.int8_ms < float("inf")}
    full = mixture(prices, everything)
    # The first of equal ones keeps its name.
    named = {"int8 cut": fastest, "int8 cut, fewer conversions": fewer, "int8 cut, finer": finer}
    found: dict[frozenset[str], Mix] = {}
    for name, item in named.items():
        if item.integers and (_worthwhile(item, full) or (item is fastest and item.integers != everything)):
            operators = prices.operators(item.integers)
            found.setdefault(operators, Mix(name, operators, item))
    return Mixes(tuple(found.values())[:MOST], mixture(prices, set()), full, notes, prices, curve)


def _worthwhile(item: Mixture, full: Mixture) -> bool:
    """Whether a mixture promises enough over int8 wherever it can be: lowering one more costs seconds."""
    return item.ms < GAIN * full.ms or item.error < FINER * full.error
