"""From the folded float program to variants in fewer bits: prepare, calibrate, decide, quantize, refine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from fxcompress.api.calibrating import measured_ranges
from fxcompress.api.candidates import FLOAT
from fxcompress.api.frontier import GIVEN_UP
from fxcompress.api.mixing import Mix, Mixes, mixes
from fxcompress.api.preparing import prepare, refine
from fxcompress.api.quantizing_modes import mode_variants
from fxcompress.api.request import Request
from fxcompress.api.variant import Quantized, Tradeoff, Variant
from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.numerics.ranges import Range
from fxcompress.passes.convolve_norms import ConvolveNorms
from fxcompress.passes.gather_shuffles import GatherShuffles
from fxcompress.passes.pool_globally import PoolGlobally
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal, Stage
from fxcompress.plan.quantization import (
    QuantizationPlan,
    Quantize,
    plan_quantization,
    tensors_of_any_choice,
)

INTEGER_FORMS: tuple[Stage, ...] = (PoolGlobally(), GatherShuffles(), ConvolveNorms())
"""What a program to quantize goes through: operators in the form that integer kernels exist for."""

FULL = "int8"
"""The name of the variant in which everything with an integer kernel runs in int8."""


@dataclass(frozen=True)
class Calibration:
    """The calibration data.

    Args:
        everything: all of it; where the user passed an iterator, it can be read once.
        again: what can be read any number of times: all of it, or the beginning of an iterator.
    """

    everything: Iterable[Any]
    again: Iterable[Any]


def quantized(
    request: Request, deployed: Program, calibration: Calibration | None, journal: Journal
) -> Quantized:
    """The programs to try instead of `deployed`; none where nothing can be quantized.

    Raises:
        InputError: the calibration data is empty or does not fit the model.
    """
    if request.quantize is None:
        return Quantized()
    if request.quantize.mode != "int8" or calibration is None:
        again = None if calibration is None else calibration.again
        return Quantized(mode_variants(request, deployed, again, journal))
    if next(iter(calibration.again), None) is None:
        raise InputError("the calibration data is empty", hint="pass an iterable with at least one batch")
    formed = journal.apply_all(INTEGER_FORMS, deployed)
    prepared = prepare(request, formed, calibration.again, journal)
    return _Drafts(request, prepared, calibration, journal).quantized()


@dataclass(frozen=True)
class _Drafts:
    """Plans over the prepared program, and the programs that they make of it."""

    request: Request
    prepared: Program
    calibration: Calibration
    journal: Journal

    @property
    def options(self) -> Quantize:
        """What the user asked for."""
        return self.request.quantize or Quantize()

    @cached_property
    def ranges(self) -> Mapping[str, Range]:
        """Of every tensor that some plan may quantize: what is never reached is spared, and then others
        are quantized, even where everything runs in int8.
        """
        request, data = self.request, self.calibration
        with self.journal.step("calibrate"):
            observed = tensors_of_any_choice(self.prepared, request.target, self.options)
            return measured_ranges(request, self.prepared, data.everything, data.again, observed)

    def quantized(self) -> Quantized:
        """Everything in int8 first, then mixtures of float and int8 that are none of those before."""
        full = self.planned()
        if not full.kernels:
            self.journal.apply(QuantizeTensors(full), self.prepared)  # which says why
            return Quantized()
        made = [replace(self.made(FULL, full), without=self.without)]
        if self.options.precision != "auto" or not self.request.target.timed:
            return Quantized(tuple(made))
        chosen = mixes(self.request, self.prepared, self.ranges, self.prepared.flat_example(), self.journal)
        named = [(full.kernels, FULL)]
        names = {frozenset[str](): FLOAT}
        for mix in chosen.found:
            plan = self.planned(mix.operators)
            same = next((name for kernels, name in named if kernels == plan.kernels), None)
            if plan.kernels and same is None:
                named.append((plan.kernels, mix.name))
                made.append(self.made(mix.name, plan, chosen.notes))
            names[mix.operators] = same or mix.name
        if chosen.everything not in names and self.planned(chosen.everything).kernels == full.kernels:
            names[chosen.everything] = FULL
        frontier = partial(self.frontier, chosen, names)
        return Quantized(tuple(made), frontier(None), frontier)

    def planned(
        self, integers: frozenset[str] | None = None, spared: frozenset[str] = frozenset()
    ) -> QuantizationPlan:
        """Decide; `integers` are the operators in int8 where prices chose them, `spared` stay in float."""
        ranges, target = self.ranges, self.request.target
        with self.journal.step("plan-quantization"):
            return plan_quantization(
                self.prepared, ranges, target, self.options, integers=integers, spared=spared
            )

    def made(self, name: str, plan: QuantizationPlan, notes: tuple[str, ...] = ()) -> Variant:
        """Quantize by a plan and refine what comes out."""
        program = self.journal.apply(QuantizeTensors(plan), self.prepared)
        draft = Variant(name, program, plan, notes, reference=self.prepared)
        return refine(self.request, self.prepared, draft, self.calibration.again, self.journal)

    def without(self, operators: frozenset[str]) -> Variant | None:
        """Everything in int8 except some operators; None where nothing is left."""
        plan = self.planned(spared=operators)
        return self.made(FULL, _giving_up(plan, operators)) if plan.kernels else None

    def frontier(
        self, chosen: Mixes, names: Mapping[frozenset[str], str], errors: Mapping[str, float] | None
    ) -> tuple[Tradeoff, ...]:
        """The points of the cut's frontier, to be made where the fastest loses too much; `names` are those
        of variants that were made.
        """
        points = chosen.points(errors)
        return tuple(
            Tradeoff(
                names.get(mix.operators, mix.name),
                mix.operators,
                mix.mixture.ms,
                math.sqrt(mix.mixture.error),
                partial(self._point, mix, points[0].operators - mix.operators),
                partial(self.made, mix.name, notes=chosen.notes),
            )
            for mix in points
        )

    def _point(self, mix: Mix, given_up: frozenset[str]) -> QuantizationPlan:
        return _giving_up(self.planned(mix.operators), given_up)


def _giving_up(plan: QuantizationPlan, operators: frozenset[str]) -> QuantizationPlan:
    """The plan that says of these operators that they are in float for the sake of `max_drop`."""
    said = tuple(replace(item, reason=GIVEN_UP) if item.node in operators else item for item in plan.declined)
    return replace(plan, declined=said)
