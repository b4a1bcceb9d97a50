"""`optimize`: capture, compress, lower, prove, measure, choose, report; each step timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx

from fxcompress.api.candidates import FLOAT, ORIGINAL, Candidate, Choice, Rules, choose
from fxcompress.api.compress import Compressed, compress
from fxcompress.api.findings import Findings, compare_outputs, peak_memories, report_of, time_all
from fxcompress.api.proofs import prove_float, prove_original, prove_variant
from fxcompress.api.quantizing_modes import refuse_unbuilt_mode
from fxcompress.api.request import (
    Model,
    Request,
    program_of,
    refuse_unbuilt,
    stages,
)
from fxcompress.api.result import Plan, Result
from fxcompress.errors import NotSupported, ProofError
from fxcompress.lowering.lower import lower
from fxcompress.measure import ModelCall, as_model, evaluate_model, program_runner, session_runner
from fxcompress.pipeline import Journal, Progress
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import Quantize
from fxcompress.recipes.recipe import Recipe
from fxcompress.report.report import Proof, Report
from fxcompress.runtime.session import LARGE, tensor_bytes
from fxcompress.runtime.timing import Comparison
from fxcompress.targets.catalog import resolve
from fxcompress.targets.target import Target


def optimize(  # noqa: PLR0913 - the one call that users make; every option is a keyword
    model: Model,
    example_inputs: Any = None,
    *,
    prune: float | Prune | PruningPlan | None = None,
    quantize: str | Quantize | None = None,
    recover: Any = None,
    calibration: Iterable[Any] | None = None,
    evaluate: Callable[[ModelCall], float] | None = None,
    max_drop: float | None = None,
    objective: str = "latency",
    target: str | Target = "onnxruntime",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    threads: int = 1,
    batch: int = 1,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> Result:
    """Compress a trained model, lower it to ONNX, prove every step and measure the result.

    Without `prune` and `quantize` the call is lossless: fold, lower, prove, measure. The model is never
    modified.

    Args:
        model: a module in evaluation mode, an exported or captured program, or a `.pt2` or `.fxc` path.
        example_inputs: a tensor, a tuple of positional or a dict of keyword inputs; inferred when absent.
        prune: the share of the MACs to remove, such as 0.5, or `Prune(...)`, or a plan that was made before.
        quantize: a mode, such as `"int8"` (which needs `calibration`), or `Quantize(...)`. Float, everything
            in the mode and mixtures of both are tried; the best that was measured is returned.
        recover: not built yet.
        calibration: batches of typical inputs: a tensor, a tuple or dict of inputs, or (inputs, label). By
            itself it quantizes nothing.
        evaluate: `evaluate(f) -> float`, higher is better; `f` takes and returns what the model does (named
            outputs as a dict), any batch, whether it is the original or an ONNX session.
        max_drop: the most that the metric may lose, in its own unit; without `evaluate`, the most that the
            outputs may move on calibration samples, relative to their norm.
        objective: `"latency"`, the fastest candidate, or `"size"`, the smallest that is not much slower.
        target: the runtime: "onnxruntime", "openvino", "tensorrt", "portable", or a `Target`.
        dynamic_shapes: dimensions beside the batch that vary.
        input_names: names for the ONNX inputs, in order.
        output_names: names for the ONNX outputs, in order.
        opset: version of the ONNX operators.
        threads: threads that latency is measured with.
        batch: samples per timed call.
        recipe: instead of `prune` and `quantize`, the stages in the order they run: a `Recipe`, the path of a
            TOML file, or the name of a recipe that comes with the package.
        progress: called with the name of every step as it begins.
        trust: load a `.pt2` file without screening it; such a file can run code.

    Raises:
        InputError: an argument that cannot be, or a model in training mode.
        CaptureError: the model cannot be captured as a graph.
        BudgetError: the pruning budget is below the reachable minimum, or every candidate loses more than
            `max_drop`.
        LoweringError: the program has no ONNX form.
        ProofError: a step does not compute what it must; nothing is returned.
        NotSupported: a mode that is not built.
        UnsafeFile: the `.pt2` or `.fxc` file could run code.
    """
    start = time.perf_counter()
    refuse_unbuilt(recover)
    request = Request(
        recipe=stages(prune, quantize, recipe),
        calibration=calibration,
        evaluate=evaluate,
        max_drop=max_drop,
        objective=objective,
        target=resolve(target),
        input_names=input_names,
        output_names=output_names,
        opset=opset,
        threads=threads,
        batch=batch,
        progress=progress,
    )
    refuse_unbuilt_mode(request)
    journal = Journal(progress)
    with journal.step("capture"):
        original = program_of(model, example_inputs, dynamic_shapes, trust=trust)
    made = compress(request, original, journal)
    candidates = _lowered(request, made, journal)
    with journal.step("prove-float"):
        proofs = [*made.proofs, prove_float(made, candidates[1])]
    with journal.step("measure"):
        times = time_all(request, original, candidates)
        errors = compare_outputs(request, made, candidates)
    relative = {name: error.relative for name, error in errors.items()}
    choosing = _Choosing(request, made, journal, proofs, relative)
    choice = choosing.choose(candidates, times)
    winner = next(item for item in candidates if item.name == choice.winner)
    if winner.name == ORIGINAL:
        with journal.step("prove-original"):
            proofs.append(prove_original(made, winner))
    with journal.step("measure-memory"):
        memory = peak_memories(request, original, (candidates[0], winner))
    seconds = time.perf_counter() - start
    findings = Findings(times, errors, memory, choice, tuple(proofs), tuple(journal.entries), seconds)
    return _result(made, winner, report_of(request, made, candidates, findings), threads)


def _lowered(request: Request, made: Compressed, journal: Journal) -> tuple[Candidate, ...]:
    """Lower the original and what was made of it; a program that no pass changed is not lowered twice."""
    programs = {ORIGINAL: made.original, FLOAT: made.deployed}
    programs |= {variant.name: variant.program for variant in made.variants}
    candidates: list[Candidate] = []
    for name, program in programs.items():
        known = next((item for item in candidates if item.program is program), None)
        if known is not None:
            candidates.append(replace(known, name=name))
            continue
        with journal.step(f"lower-{name}"):
            model = lower(
                program,
                opset=request.opset,
                input_names=request.input_names,
                output_names=request.output_names,
                forms=request.target.forms,
            )
            candidates.append(Candidate(name, program, model, _content(model)))
    return tuple(candidates)


def _content(model: onnx.ModelProto) -> bytes:
    """The file as bytes, which is what is timed and probed."""
    if tensor_bytes(model) >= LARGE:
        raise NotSupported(
            f"the model has {tensor_bytes(model) / 2**30:.1f} GiB of tensors; an ONNX file holds up to 2 GiB",
            hint="capture, edit and lower it step by step: lowering.write.save_model splits such files",
        )
    content: bytes = model.SerializeToString()
    return content


@dataclass(frozen=True)
class _Choosing:
    """The choice, with what it needs to look at a candidate more closely: its metric and its proof."""

    request: Request
    made: Compressed
    journal: Journal
    proofs: list[Proof]
    errors: Mapping[str, float]

    def choose(self, candidates: Sequence[Candidate], times: Comparison) -> Choice:
        """Choose by the measured times, the metric where the user gave one, and proofs."""
        forced = self.request.quantize is not None and self.request.quantize.precision == "full"
        target = self.request.target
        untimed = None if times.runtime == target.runtime else target.name
        rules = Rules(self.request.objective, forced, self.request.max_drop, self.errors, untimed)
        metric = None if self.request.evaluate is None else partial(self._metric, self.request.evaluate)
        return choose(candidates, times, rules, metric, partial(self._fault, forced=forced))

    def _metric(self, evaluate: Callable[[ModelCall], float], item: Candidate) -> float:
        """The user's metric: the original runs in torch, the others as the sessions they are deployed as."""
        with self.journal.step(f"evaluate-{item.name}"):
            if item.name == ORIGINAL:
                runner = program_runner(self.made.original)
            else:
                runner = session_runner(item.content, self.request.threads)
            return evaluate_model(evaluate, as_model(self.made.original, runner), f"the {item.name} model")

    def _fault(self, item: Candidate, *, forced: bool) -> str | None:
        """Prove a variant; a proof that fails is a reason not to take it, unless nothing else was asked
        for.
        """
        variant = self.made.variant(item.name)
        if variant is None:
            return None
        try:
            with self.journal.step(f"prove-{item.name}"):
                self.proofs.append(prove_variant(self.made, item, variant, self.request.target))
        except ProofError as error:
            if forced:
                raise
            return f"its proof failed: {error.message}"
        return None


def _result(made: Compressed, winner: Candidate, report: Report, threads: int) -> Result:
    if winner.name == ORIGINAL:
        return Result(made.original, made.original, Plan(), winner.model, report, threads)
    plan = Plan(made.pruning, made.plan_of(winner.name))
    return Result(winner.program, made.trainable, plan, winner.model, report, threads)
