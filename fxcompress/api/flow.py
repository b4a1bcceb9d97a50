"""`optimize`: capture, compress, lower, prove, measure, choose, report; each step timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fxcompress.api.attribution import noise_of
from fxcompress.api.candidates import ORIGINAL, Candidate
from fxcompress.api.choosing import Choosing, lower_all
from fxcompress.api.compress import Compressed, compress
from fxcompress.api.findings import Findings, compare_outputs, peak_memories, report_of, time_all
from fxcompress.api.proofs import prove_float, prove_original
from fxcompress.api.quantizing_modes import refuse_unbuilt_mode
from fxcompress.api.request import (
    Model,
    Request,
    program_of,
    refuse_rework,
    refuse_unbuilt,
    refuse_unmeasurable,
    stages,
)
from fxcompress.api.result import Plan, Result
from fxcompress.measure import ModelCall
from fxcompress.pipeline import Journal, Progress
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization import Quantize
from fxcompress.recipes.recipe import Recipe
from fxcompress.report.report import Report
from fxcompress.targets.catalog import resolve
from fxcompress.targets.target import Target


def optimize(  # noqa: PLR0913 - the one call that users make; every option is a keyword
    model: Model,
    example_inputs: Any = None,
    *,
    prune: float | Prune | PruningPlan | Plan | None = None,
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
        max_drop: the most that the metric may lose, in its own unit; without `evaluate`, the most that any
            output may move on calibration samples, relative to its norm.
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
    refuse_unmeasurable(request, original)
    refuse_rework(request, original)
    made = compress(request, original, journal)
    candidates = lower_all(request, made, journal)
    with journal.step("prove-float"):
        proofs = [*made.proofs, prove_float(made, candidates[1])]
    choosing = Choosing(request, made, journal, proofs)
    candidates = choosing.widened(candidates)
    made = choosing.made
    with journal.step("measure"):
        times = time_all(request, original, candidates)
        errors = compare_outputs(request, made, candidates)
    choice = choosing.choose(candidates, times, errors)
    winner = next(item for item in candidates if item.name == choice.winner)
    if winner.name == ORIGINAL:
        with journal.step("prove-original"):
            proofs.append(prove_original(made, winner))
    with journal.step("measure-memory"):
        memory = peak_memories(request, original, (candidates[0], winner))
    noise = noise_of(made.variant(winner.name), made.samples, journal)
    seconds = time.perf_counter() - start
    findings = Findings(times, errors, memory, choice, tuple(proofs), tuple(journal.entries), seconds, noise)
    return _result(made, winner, report_of(request, made, candidates, findings), threads)


def _result(made: Compressed, winner: Candidate, report: Report, threads: int) -> Result:
    if winner.name == ORIGINAL:
        return Result(made.original, made.original, Plan(), winner.model, report, threads)
    plan = Plan(made.pruning, made.plan_of(winner.name))
    return Result(winner.program, made.trainable, plan, winner.model, report, threads)
