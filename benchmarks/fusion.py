"""What each fusion rule pays: a network in which it applies, with all rules and with all but this one.

Rules that are for integers are measured in INT8, everything quantized; the others in float.

Both files are timed in one process, in alternated rounds, on one thread, in processor time (what other
processes took does not count; `--wall` counts it). The ratio is of medians, with its 95 % bootstrap interval:
below one, the rule pays. Beside it stand the operators of the program and those that onnxruntime executes:
where only the first fall, the runtime does by itself in float what the rule does, and the rule is kept for
what it gives INT8, other runtimes, and the reader. Exits non-zero where a rule makes its network slower.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import onnx
import torch
from rich.console import Console

from benchmarks.fusion_models import INEXACT, SUBJECTS, Subject
from fxcompress.analysis.calibration import calibrate
from fxcompress.api.quantizing import INTEGER_FORMS
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering import lower as lowering
from fxcompress.lowering.lower import FORMS, REWRITES, lower
from fxcompress.passes.quantize_tensors import QuantizeTensors
from fxcompress.pipeline import Journal
from fxcompress.plan.quantization import Quantize, plan_quantization, tensors_to_observe
from fxcompress.proof.integer import integer_bound
from fxcompress.proof.parity import float_parity
from fxcompress.recipes import LOSSLESS
from fxcompress.report import tables
from fxcompress.runtime.inspection import executed
from fxcompress.runtime.timing import SLOWER, compare
from fxcompress.targets.onnxruntime import onnxruntime


@dataclass(frozen=True)
class Line:
    """One rule on one network; every pair is without the rule and with it."""

    rule: str
    network: str
    ms: tuple[float, float]
    ratio: float
    low: float
    high: float
    operators: tuple[int, int]
    executed: tuple[int, int]
    rounds: int

    @property
    def verdict(self) -> str:
        """Whether the rule pays beyond doubt, costs beyond doubt, or neither."""
        if self.low > SLOWER:
            return "SLOWER"
        return "pays" if self.high < 1 / SLOWER else "no slower"


def main() -> int:
    """Measure, print, and write JSON where asked; 0 when no rule makes its network slower."""
    options = _options()
    torch.set_num_threads(1)
    clock = time.perf_counter if options.wall else time.thread_time
    lines = []
    for subject in SUBJECTS:
        if options.rules and subject.rule not in options.rules:
            continue
        lines.append(_line(subject, options.rounds, clock))
        Console(stderr=True).print(f"{subject.rule}: {lines[-1].ratio:.3f} ({subject.network})")
    Console(width=150).print(_view(lines))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(line), "verdict": line.verdict} for line in lines]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(line.verdict == "SLOWER" for line in lines) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = list(dict.fromkeys(subject.rule for subject in SUBJECTS))
    parser.add_argument("--rules", nargs="+", choices=known, metavar="RULE", help=f"of {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=40, help="alternated rounds")
    parser.add_argument("--wall", action="store_true", help="time by the clock on the wall")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def _line(subject: Subject, rounds: int, clock: object) -> Line:
    program = program_of(subject)
    inputs = torch.randn(subject.shape, generator=torch.Generator().manual_seed(0))
    made = make(subject, program)
    files = {label: file.SerializeToString() for label, (_, file) in made.items()}
    feeds = {program.signature.inputs[0]: inputs.numpy()}
    run = compare(files, feeds, rounds=rounds, clock=clock)  # type: ignore[arg-type]
    ratio = run.ratio("with", "without")
    return Line(
        subject.rule,
        subject.network,
        (run.median_ms["without"], run.median_ms["with"]),
        ratio.value,
        ratio.low,
        ratio.high,
        _pair([_operators(deployed) for deployed, _ in made.values()]),
        _pair([len(executed(file)) for _, file in made.values()]),
        rounds,
    )


def program_of(subject: Subject) -> Program:
    """The network of a subject."""
    torch.manual_seed(0)
    model = subject.build().eval()
    if subject.static:
        return capture(torch.export.export(model, (torch.randn(subject.shape),)))
    return capture(model, torch.randn(2, *subject.shape[1:]))


def make(subject: Subject, program: Program) -> dict[str, tuple[Program, onnx.ModelProto]]:
    """The deployed program and its file, without the rule and with it; proven."""
    left_out = {"without": {subject.rule, *subject.instead, *subject.never}, "with": {*subject.never}}
    made = _in_integers if subject.integers else _in_float
    return {label: made(program, frozenset(rules)) for label, rules in left_out.items()}


def _in_float(program: Program, left_out: frozenset[str]) -> tuple[Program, onnx.ModelProto]:
    """The deployed program and its file, with every rule that is not left out."""
    deployed = Journal().apply_all([stage for stage in LOSSLESS if stage.name not in left_out], program)
    file = _lowered(deployed, left_out)
    float_parity(deployed, file, program.flat_example())
    return deployed, file


def _in_integers(program: Program, left_out: frozenset[str]) -> tuple[Program, onnx.ModelProto]:
    """The same with everything in INT8 that can be; what cannot be proven is not."""
    stages = [stage for stage in (*LOSSLESS, *INTEGER_FORMS) if stage.name not in left_out]
    formed, target, options = Journal().apply_all(stages, program), onnxruntime(), Quantize(precision="full")
    ranges = calibrate(formed, [formed.example.args], tensors_to_observe(formed, target, options))
    plan = plan_quantization(formed, ranges, target, options)
    quantized = QuantizeTensors(plan).run(formed).program
    file = _lowered(quantized, left_out)
    if not left_out & INEXACT:
        integer_bound(formed, quantized, file, program.flat_example())
    return quantized, file


def _lowered(deployed: Program, left_out: frozenset[str]) -> onnx.ModelProto:
    kept = tuple(step for step in REWRITES if step.__name__.replace("_", "-") not in left_out)
    with patch.object(lowering, "REWRITES", kept):
        return lower(deployed, forms=FORMS.keys() - left_out)


def _operators(program: Program) -> int:
    return sum(node.op == "call_function" for node in program.graph.nodes)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    without, with_rule = numbers
    return without, with_rule


def _view(lines: Sequence[Line]) -> object:
    columns = ("ms without", "ms with", "ratio", "interval", "operators", "executed")
    made = tables.table("Fusion rules", "rule", "network", *columns, "", right=columns)
    for line in lines:
        made.add_row(
            line.rule,
            line.network,
            f"{line.ms[0]:.3f}",
            f"{line.ms[1]:.3f}",
            f"{line.ratio:.3f}",
            f"[{line.low:.3f}, {line.high:.3f}]",
            f"{line.operators[0]} to {line.operators[1]}",
            f"{line.executed[0]} to {line.executed[1]}",
            line.verdict,
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
