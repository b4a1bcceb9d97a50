"""What is measured of the candidates, and the report that is made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxcompress.analysis.cost import Cost, cost
from fxcompress.analysis.prunability import prunability
from fxcompress.api.candidates import FLOAT, ORIGINAL, Candidate, Choice
from fxcompress.api.carried import carried_remarks
from fxcompress.api.compress import Compressed
from fxcompress.api.request import Request
from fxcompress.graph.program import Program
from fxcompress.lowering.provenance import owner_of
from fxcompress.measure import Difference, differences, program_runner, resized, session_runner
from fxcompress.passes.contract import Decline
from fxcompress.pipeline import Entry
from fxcompress.proof.exposure import feeds_of
from fxcompress.report.listings import frozen_entries, reach
from fxcompress.report.report import (
    Candidate as CandidateEntry,
)
from fxcompress.report.report import (
    DeclinedSite,
    FrontierPoint,
    Interval,
    LayerNoise,
    Operators,
    OutputError,
    PassEntry,
    Proof,
    Report,
    Side,
)
from fxcompress.runtime import openvino
from fxcompress.runtime.inspection import executed, executor_of
from fxcompress.runtime.memory import peak_memory
from fxcompress.runtime.session import SessionError
from fxcompress.runtime.timing import Comparison, Engine, compare

NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
TIMING_SECONDS = 20.0
"""Soft bound on one alternated run; thirty rounds are measured whatever they take."""


@dataclass(frozen=True)
class Peak:
    """Peak resident bytes of a session, or None and why they could not be measured."""

    bytes: int | None
    trouble: str = ""


@dataclass(frozen=True)
class Findings:
    """What was measured and decided; the mappings are by candidate name."""

    times: Comparison
    errors: Mapping[str, Difference]
    memory: Mapping[str, Peak]
    choice: Choice
    proofs: tuple[Proof, ...]
    entries: tuple[Entry, ...]
    seconds: float
    noise: tuple[LayerNoise, ...] = ()


def time_all(request: Request, original: Program, candidates: Sequence[Candidate]) -> Comparison:
    """Time every candidate in one alternated run, at the request's batch and threads.

    In the target's runtime where it is installed, else in ONNX Runtime.
    """
    models = {item.name: item.content for item in candidates}
    feeds = _feeds(request, original, candidates[0])
    if request.target.runtime == "openvino" and openvino.available():
        try:
            return compare(
                models,
                feeds,
                threads=request.threads,
                seconds=TIMING_SECONDS,
                engine=Engine("openvino", openvino.compiled),
            )
        except SessionError:  # an operator that it does not read: ONNX Runtime stands in, and a note says so
            pass
    return compare(models, feeds, threads=request.threads, seconds=TIMING_SECONDS)


def compare_outputs(
    request: Request, made: Compressed, candidates: Sequence[Candidate]
) -> dict[str, Difference]:
    """Return how far each candidate's outputs are from the original's, on example and calibration samples."""
    runners = {item.name: session_runner(item.content, request.threads) for item in candidates[1:]}
    inputs = [made.original.flat_example(), *made.samples]
    return differences(program_runner(made.original), runners, inputs)


def moved_outputs(request: Request, original: Program, errors: Mapping[str, Difference]) -> dict[str, str]:
    """Return by candidate the name of the output that moves most, where there are several outputs."""
    names = request.output_names or original.signature.outputs
    return {name: names[error.output] for name, error in errors.items()} if len(names) > 1 else {}


def _output_error(request: Request, original: Program, error: Difference) -> OutputError:
    name = moved_outputs(request, original, {"": error}).get("")
    return OutputError(error.largest, error.mean, error.relative, name)


def peak_memories(request: Request, original: Program, candidates: Sequence[Candidate]) -> dict[str, Peak]:
    """Return the peak memory of each candidate's session, in fresh processes.

    A probe that fails costs its figure and nothing else: everything is proven by then.
    """
    feeds = _feeds(request, original, candidates[0])
    by_name = {item.name: item.content for item in candidates}
    return {name: _peak(content, feeds, request.threads) for name, content in by_name.items()}


def _peak(content: bytes, feeds: Mapping[str, NDArray[Any]], threads: int) -> Peak:
    try:
        return Peak(peak_memory(content, feeds, threads))
    except SessionError as error:
        return Peak(None, error.message)


def _feeds(request: Request, original: Program, candidate: Candidate) -> dict[str, NDArray[Any]]:
    """Return the example at the request's batch under the names of the ONNX inputs."""
    inputs, _ = resized(original, request.batch)
    return feeds_of(candidate.model, inputs)


def report_of(
    request: Request, made: Compressed, candidates: Sequence[Candidate], findings: Findings
) -> Report:
    """Put everything that was measured, proven, changed and declined into one report."""
    original = candidates[0]
    winner = next(item for item in candidates if item.name == findings.choice.winner)
    before = cost(made.original)
    after = before if winner is original else cost(made.deployed)
    samples = resized(made.original, request.batch)[1]
    ratio = findings.times.ratio(winner.name, ORIGINAL)
    error = findings.errors.get(winner.name)
    reachable = prunability(made.analysis)
    return Report(
        before=_side(original, before, findings, samples),
        after=_side(winner, after, findings, samples),
        output_error=None if error is None else _output_error(request, made.original, error),
        latency_ratio=Interval(ratio.value, ratio.low, ratio.high),
        passes=tuple(
            PassEntry(entry.name, entry.seconds, entry.changed, tuple(map(_declined, entry.declined)))
            for entry in findings.entries
        ),
        frozen=frozen_entries(reachable),
        prunability=reach(reachable),
        notes=_notes(request, made, winner, samples, findings),
        candidates=tuple(_candidate(item, findings) for item in candidates),
        proofs=findings.proofs,
        operators=_operators(request, winner, made),
        latency_budget=made.latency_budget,
        frontier=tuple(_frontier(made)),
        sensitivity=findings.noise,
        settings=request.settings,
        seconds=findings.seconds,
    )


def _side(item: Candidate, price: Cost, findings: Findings, samples: int) -> Side:
    rounds = np.asarray(findings.times.seconds[item.name]) * 1e3
    low, median, high = (float(value) for value in np.quantile(rounds, (0.25, 0.5, 0.75)))
    return Side(
        params=price.params,
        macs=round(price.macs),
        bytes=item.size,
        latency_ms=median,
        latency_low=low,
        latency_high=high,
        throughput=findings.times.throughput(item.name, samples),
        peak_memory=findings.memory[item.name].bytes,
        metric=findings.choice.metrics.get(item.name),
    )


def _candidate(item: Candidate, findings: Findings) -> CandidateEntry:
    error = findings.errors.get(item.name)
    return CandidateEntry(
        name=item.name,
        latency_ms=findings.times.median_ms[item.name],
        bytes=item.size,
        metric=findings.choice.metrics.get(item.name),
        error=None if error is None else error.relative,
        chosen=item.name == findings.choice.winner,
        reason=findings.choice.reasons[item.name],
    )


def _frontier(made: Compressed) -> Iterator[FrontierPoint]:
    """The points of the cut's frontier; each names the candidate of this choice, if one was made."""
    for point in made.frontier:
        was_made = point.variant == FLOAT or made.variant(point.variant) is not None
        name = point.variant if was_made else None
        yield FrontierPoint(len(point.operators), point.ms, point.error, name)


def _operators(request: Request, winner: Candidate, made: Compressed) -> Operators | None:
    """Compare the operators meant for int8 with those that the runtime executes in integers.

    An operator may have become several ONNX nodes (a linear is MatMul and Add); one in integers will do.
    """
    plan = made.plan_of(winner.name)
    if plan is None or not request.target.timed:
        return None
    executors = executor_of(executed(winner.content))
    integer = {
        owner_of(node.name)
        for node in winner.model.graph.node
        if any(name in executors and executors[name].integer for name in node.output)
    }
    fallbacks = tuple(name for name in plan.intended if name not in integer)
    return Operators(len(plan.intended), len(plan.intended) - len(fallbacks), fallbacks)


def _notes(
    request: Request, made: Compressed, winner: Candidate, samples: int, findings: Findings
) -> tuple[str, ...]:
    notes = [*made.original.notes, *made.notes]
    if findings.times.runtime != request.target.runtime:
        notes.append(
            f"latency was measured in {NAMES[findings.times.runtime]}, not on {request.target.name}: nothing "
            "here says how fast the file is there"
        )
    elif findings.times.runtime != "onnxruntime":
        notes.append(f"latency was measured in {NAMES[findings.times.runtime]}")
    if samples != request.batch:
        notes.append(f"timed with a batch of {samples}: the model's batch is fixed")
    if winner.name == ORIGINAL:
        notes.append("every compressed form was slower than the original, which is what is returned")
    notes.extend(carried_remarks(request.target, made.carried, winner, findings.times))
    variant = made.variant(winner.name)
    if variant is not None:
        notes.extend(variant.notes)
    elif request.quantize is not None:
        notes.append(_not_quantized(request.quantize.mode, made, winner, findings))
    notes.extend(
        f"the peak memory of the {name} model was not measured: {peak.trouble}"
        for name, peak in findings.memory.items()
        if peak.bytes is None
    )
    error = findings.errors.get(winner.name)
    if error is not None and not math.isfinite(error.largest):
        notes.append(
            "the output error is infinite: NaN or infinities where the original has numbers, or else"
        )
    return tuple(dict.fromkeys(notes))


def _not_quantized(mode: str, made: Compressed, winner: Candidate, findings: Findings) -> str:
    """Why nothing in the mode that was asked for is handed out."""
    reasons = [f"{item.name}: {findings.choice.reasons[item.name]}" for item in made.variants]
    why = "; ".join(reasons) or f"{mode}: no operator could be quantized; the passes say why"
    return f"{mode} was asked for, and the {winner.name} model is handed out; {why}"


def _declined(site: Decline) -> DeclinedSite:
    return DeclinedSite(site.site, site.reason, site.source)
