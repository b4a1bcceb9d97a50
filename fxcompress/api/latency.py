"""Pruning to a number of milliseconds: kernel prices, and rounds of planning, lowering and measuring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from fxcompress.analysis.evidence import Evidence
from fxcompress.analysis.groups import Analysis
from fxcompress.analysis.latency import LatencyPrice, latency_price
from fxcompress.api.request import Request
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower
from fxcompress.measure import resized
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.budget_options import Budget
from fxcompress.plan.closed_loop import Loop, Met
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import narrowest_plan, plan_pruning
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.proof.exposure import feeds_of
from fxcompress.report.report import LatencyBudget, LatencyRound
from fxcompress.runtime.kernel_times import KernelTimes, profiled
from fxcompress.runtime.session import Feeds
from fxcompress.runtime.timing import Comparison, compare

SECONDS = 12.0
"""Soft bound on one alternated run against the original."""
TIMED_ROUNDS = 120
SESSIONS = 8
"""Sessions that the rounds of one run are spread over."""
QUIET = 0.25
"""The quantile of the rounds that counts here: other processes only ever add time, and a plan must not follow
them. For the same reason sessions of one thread are timed by its processor time. On a quiet machine both are
the median by the wall clock, which is what reports state.
"""


@dataclass(frozen=True)
class Bench:
    """The original on the target: what every round is timed against, in one alternated run each.

    Milliseconds are stated on the clock of the first run: a later round counts by its ratio to the original
    beside it, so that a machine that grows slower meanwhile does not look like a slower model.
    """

    content: bytes
    feeds: Feeds
    threads: int
    milliseconds: float

    def measure(self, model: onnx.ModelProto) -> float:
        """Milliseconds of a call of another model."""
        pair = {"original": self.content, "pruned": model.SerializeToString()}
        run = timed(pair, self.feeds, self.threads, SECONDS)
        return self.milliseconds * _quiet(run, "pruned") / _quiet(run, "original")


def timed(models: Mapping[str, bytes], feeds: Feeds, threads: int, seconds: float) -> Comparison:
    """One alternated run, as little disturbed by other processes as can be."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    return compare(
        models,
        feeds,
        threads=threads,
        rounds=TIMED_ROUNDS,
        seconds=seconds,
        clock=clock,
        sessions=SESSIONS,
    )


def _quiet(run: Comparison, label: str) -> float:
    return float(np.quantile(run.seconds[label], QUIET))


@dataclass(frozen=True)
class Removal:
    """What is to go, and how a budget in milliseconds was met, where there is one."""

    plan: PruningPlan
    latency: LatencyBudget | None = None
    notes: tuple[str, ...] = ()


def plan_removal(
    request: Request,
    options: Prune,
    original: Program,
    analysis: Analysis,
    evidence: Evidence | None,
    journal: Journal,
) -> Removal:
    """The plan that meets every bound of the options; a bound in milliseconds is met by what is measured.

    Raises:
        BudgetError: a bound is below the reachable minimum.
    """
    if request.plan is not None:
        return Removal(request.plan.priced(analysis))
    if options.budget is None or options.budget.ms is None:
        with journal.step("plan-pruning"):
            block = request.target.channel_block
            return Removal(plan_pruning(analysis, options, block, evidence=evidence))
    with journal.step("measure-original"):
        bench = bench_of(request, original)
    times = KernelTimes(threads=request.threads)
    try:
        with journal.step("measure-kernels"):
            price = latency_price(analysis, times, request.target.channel_block, request.batch)
            kernels = profiled(bench.content, bench.feeds, request.threads)
            price = price.calibrated(kernels, bench.milliseconds)
        with journal.step("plan-to-latency"):
            met = Rounds(request, options, analysis, evidence, price, bench).meet(options.budget)
    finally:
        times.save()
    return Removal(met.chosen.plan, figures(met), (*times.notes, *_missed(met)))


def bench_of(request: Request, original: Program) -> Bench:
    """Lower the original and time it alone."""
    model = lower(original, opset=request.opset)
    feeds = feeds_of(model, resized(original, request.batch)[0])
    content = model.SerializeToString()
    run = timed({"original": content}, feeds, request.threads, SECONDS / 2)
    return Bench(content, feeds, request.threads, 1e3 * _quiet(run, "original"))


@dataclass(frozen=True)
class Rounds:
    """Planning, pruning, folding, lowering and measuring, as often as the closed loop asks."""

    request: Request
    options: Prune
    analysis: Analysis
    evidence: Evidence | None
    price: LatencyPrice
    bench: Bench

    def meet(self, budget: Budget) -> Met[PruningPlan]:
        asked = budget.limit("ms", self.bench.milliseconds) or 0.0
        loop = Loop(partial(self.plan_at, budget), self.narrowest, self.predict, self.measure)
        return loop.meet(asked, self.bench.milliseconds)

    def plan_at(self, budget: Budget, milliseconds: float) -> PruningPlan:
        aimed = replace(self.options, budget=replace(budget, ms=milliseconds))
        block = self.request.target.channel_block
        return plan_pruning(self.analysis, aimed, block, evidence=self.evidence, latency=self.price)

    def narrowest(self) -> PruningPlan:
        block = self.request.target.channel_block
        return narrowest_plan(self.analysis, self.options, block, evidence=self.evidence)

    def predict(self, plan: PruningPlan) -> float:
        return self.price.at({axis: len(stay) for axis, stay in plan.indices(self.analysis).items()})

    def measure(self, plan: PruningPlan) -> float:
        program = PruneChannels(plan).run(self.analysis.program).program
        for stage in (PackLinears(), *self.request.recipe.after):
            program = stage.run(program).program
        return self.bench.measure(lower(program, opset=self.request.opset, forms=self.request.target.forms))


def figures(met: Met[PruningPlan]) -> LatencyBudget:
    """What the report says of the rounds."""
    rounds = tuple(
        LatencyRound(item.predicted, item.measured, item is met.chosen, len(item.times))
        for item in met.rounds
    )
    return LatencyBudget(met.asked, met.original, met.chosen.predicted, met.chosen.measured, rounds)


def _missed(met: Met[PruningPlan]) -> tuple[str, ...]:
    """A note where the widths on the edges of the stairs, or other bounds, allow nothing closer."""
    if met.close:
        return ()
    return (
        f"{met.asked:.4g} ms were asked for; the model that fits best takes {met.chosen.measured:.4g} ms",
    )
